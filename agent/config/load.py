"""Reading int8d.toml."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec

from agent.config.checks import check
from agent.config.secrets import resolve, secret_file
from agent.config.tables import Config
from agent.errors import ConfigError


def parse(path: str | os.PathLike[str]) -> Config:
    """Reads a file and checks all that needs no other file. Raises ``ConfigError`` that names the key."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: can't be read ({e.strerror}); name a file with --config") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 text") from e
    try:
        config = msgspec.convert(tomllib.loads(text), Config)
        check(config)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not valid TOML: {e}") from e
    except (msgspec.ValidationError, ConfigError) as e:
        raise ConfigError(f"{path}: {e}") from e
    return config


def load(path: str | os.PathLike[str]) -> Config:
    """``parse``, with credentials resolved to files that are here. Raises ``ConfigError``."""
    config = parse(path)
    try:
        if config.broker.password is not None:
            secret_file(os.fspath(path), "broker.password is in clear text, and the file")
        return resolve(config)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from e
