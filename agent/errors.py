"""The errors that a person can cause, as one family.

Each message says what is wrong and what to do. An error that only a bug can cause is an ``assert``.
"""

from __future__ import annotations


class Int8dError(Exception):
    """Root of every error that a person, a file or a sender can cause."""


class ModelError(Int8dError):
    """A model file or graph breaks a rule; the message names the operator or tensor."""


class InputError(Int8dError):
    """An input does not fit the model: shape, dtype, encoding or size."""


class ConfigError(Int8dError):
    """int8d.toml or a command line is wrong; the daemon ends with exit status 78."""


class BackendError(Int8dError):
    """No backend here can run an operator of the model."""
