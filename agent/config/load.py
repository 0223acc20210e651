"""Reading int8d.toml."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec

from agent.config.checks import check
from agent.config.tables import Config
from agent.errors import ConfigError


def load(path: str | os.PathLike[str]) -> Config:
    """Reads and checks a file. Raises ``ConfigError`` that names the key and what to do."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: can't be read ({e.strerror}); name a file with --config") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 text") from e
    try:
        config = msgspec.convert(tomllib.loads(text), Config)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not valid TOML: {e}") from e
    except msgspec.ValidationError as e:
        raise ConfigError(f"{path}: {e}") from e
    try:
        check(config)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from e
    return config
