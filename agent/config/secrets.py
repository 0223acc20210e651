"""Files that hold secrets: systemd's credentials by name, and a warning for a file that others can read.

``password_file = "credential:mqtt-password"`` is the file that the unit's ``LoadCredential=mqtt-password:…`` or
``LoadCredentialEncrypted=`` puts into a folder that the service alone can read.
"""

from __future__ import annotations

import logging
import os
import stat

import msgspec

from agent.config.tables import Config
from agent.errors import ConfigError
from agent.mqtt.tls import context

log = logging.getLogger(__name__)
_SCHEME = "credential:"


def secret_file(name: str | None, where: str) -> str | None:
    """The file behind a path or ``credential:NAME``. Raises ``ConfigError`` where there is none.

    A file of one's own that its group or others may read is warned of. Credentials aren't: systemd grants a service
    access to them in ways that a file's mode does not show.
    """
    if name is None:
        return None
    if name.startswith(_SCHEME):
        return credential(name.removeprefix(_SCHEME), where)
    if not os.path.isfile(name):
        raise ConfigError(f"{where}: there is no file '{name}'")
    if os.stat(name).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("%s '%s' can be read by others than its owner: chmod 600 it", where, name)
    return name


def credential(name: str, where: str) -> str:
    """The file of a credential of this service. Raises ``ConfigError`` where there is none."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigError(
            f"{where}: credential '{name}' is asked for, but $CREDENTIALS_DIRECTORY is not set: run under systemd with "
            f"LoadCredential={name}:FILE in the unit, or name a file"
        )
    if not name or "/" in name or name in (".", ".."):
        raise ConfigError(f"{where}: '{name}' is not the name of a credential")
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise ConfigError(f"{where}: there is no credential '{name}': add LoadCredential={name}:FILE to the unit")
    return path


def resolve(config: Config) -> Config:
    """The settings with each secret's file in place of its name; each file that is named is there."""
    broker, tls = config.broker, config.broker.tls
    password = secret_file(broker.password_file, "broker.password_file")
    if tls is not None:
        for key, file in (("ca", tls.ca), ("cert", tls.cert)):
            if file is not None and not os.path.isfile(file):
                raise ConfigError(f"broker.tls.{key}: there is no file '{file}'")
        tls = msgspec.structs.replace(tls, key=secret_file(tls.key, "broker.tls.key"))
        context(tls)  # each connection makes its own, so that new certificates need no restart
    encryption = config.encryption
    if config.encrypted:
        encryption = msgspec.structs.replace(encryption, key=secret_file(encryption.key, "encryption.key"))
    updates = config.updates
    if updates.repository:
        for key, file in (("root", updates.root), ("ca", updates.ca), ("cert", updates.cert)):
            if file is not None and not os.path.isfile(file):
                raise ConfigError(f"updates.{key}: there is no file '{file}'")
        updates = msgspec.structs.replace(
            updates,
            cert_key=secret_file(updates.cert_key, "updates.cert_key"),
            key=secret_file(updates.key, "updates.key"),
        )
    broker = msgspec.structs.replace(broker, password_file=password, tls=tls)
    return msgspec.structs.replace(config, broker=broker, encryption=encryption, updates=updates)
