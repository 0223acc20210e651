"""The device's age identities: the private keys that its encrypted models are opened with.

The file is the one that ``age-keygen`` writes: a line ``AGE-SECRET-KEY-1…`` a key, and comments. Several keys may lie
in it, so that releases for the old one still open once there is a new one. A release is published for a recipient,
``age1…``, which ``int8d key show FILE`` prints.
"""

from __future__ import annotations

import time
from typing import Any

from agent.errors import ConfigError
from agent.files import write_new_secret

_MOST_BYTES = 65536


def is_identity(text: bytes) -> bool:
    """Whether a key file holds age identities; else it may be one of ``agent.wire.keys``."""
    return any(line.startswith(b"AGE-SECRET-KEY-") for line in text.splitlines())


def create(path: str) -> str:
    """A new identity, in a new file that its owner alone can read; its recipient. Raises ``ConfigError``."""
    identity = _x25519().Identity.generate()
    recipient = str(identity.to_public())
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_new_secret(path, f"# created: {made}\n# public key: {recipient}\n{identity}\n".encode())
    return recipient


def load(path: str) -> list[Any]:
    """The file's identities, as ``pyrage`` takes them. Raises ``ConfigError`` where there are none."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_BYTES)
    except OSError as e:
        raise ConfigError(f"{path}: can't be read ({e.strerror}); make a key with: int8d key new {path} --age") from e
    kind, found = _x25519().Identity, []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if not words or words.startswith(b"#"):
            continue
        try:
            found.append(kind.from_str(words.decode()))
        except Exception as e:  # the library's own error is no more exact
            raise ConfigError(
                f"{path}: line {number} is no X25519 identity of age (AGE-SECRET-KEY-1…); make one with: int8d key new "
                "FILE --age"
            ) from e
    if not found:
        raise ConfigError(f"{path}: holds no identity of age; make one with: int8d key new FILE --age")
    return found


def recipients(path: str) -> list[str]:
    """``age1…`` of each identity of a file. Raises ``ConfigError``."""
    return [str(identity.to_public()) for identity in load(path)]


def _x25519() -> Any:
    """Imported where it is needed: a service without encrypted models does without it."""
    try:
        from pyrage import x25519
    except ImportError as e:
        raise ConfigError(f"age needs a package that is not installed ({e}): pip install 'int8d[updates]'") from e
    return x25519
