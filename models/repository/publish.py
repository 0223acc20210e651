"""A model file becomes a release: checked, encrypted where asked for, signed.

    publish(repository, Path("digits.int8.safetensors"), "digits", 3, rollout=Rollout((Stage(5.0),)))

Its target is ``<name>/<release>.int8.safetensors``, for a group of devices ``<name>/<group>/<release>…``, and ends in
``.age`` where it is encrypted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.errors import Int8dError, ModelError
from agent.modelfile import read
from agent.repository.release import Release, Rollout, custom_of
from models.repository.repository import Entry, Repository

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
_MAX_RELEASE = 2**53 - 1  # what each reader of JSON takes


def publish(
    repository: Repository,
    path: Path,
    name: str,
    number: int,
    group: str = "",
    recipients: Sequence[str] = (),
    rollout: Rollout = Rollout(),
) -> Release:
    """Adds a release and signs it. name: the model's, as in the devices' ``[[model]]``; number: the release's.

    group: the devices that may take it; "" is all. recipients: age public keys; each of their owners can decrypt it.
    rollout: an empty salt becomes ``name/number``.
    Raises ``Int8dError``: a name, number or recipient that can't be; a model that can't run, or has no golden inputs.
    """
    _check_name(name, "name")
    if group:
        _check_name(group, "group of devices")
    _check_number(repository, name, number, group)
    repository.require_keys()
    data = _checked_model(path)
    release = Release(
        name, number, group,
        rollout=msgspec.structs.replace(rollout, salt=rollout.salt or f"{name}/{number}"),
    )  # fmt: skip
    target = "/".join(filter(None, (name, group, f"{number}.int8.safetensors")))
    if recipients:
        release = msgspec.structs.replace(
            release, encryption="age", plaintext_sha256=hashlib.sha256(data).hexdigest(), plaintext_bytes=len(data)
        )
        data = _encrypted(data, recipients)
        target += ".age"
    repository.add(target, data, custom_of(release))
    repository.commit("targets")
    return release


def revoke(repository: Repository, entry: Entry, reason: str) -> Release:
    """Withdraws a release: devices do not install it any more, and one that runs it learns why it must not.

    Raises ``Int8dError`` where no reason is given.
    """
    if not reason.strip():
        raise Int8dError("a withdrawn release takes a reason: people read it on the device")
    release = msgspec.structs.replace(entry.release, withdrawn=reason.strip())
    repository.describe(entry.path, custom_of(release))
    repository.commit("targets")
    return release


def recipients_of(words: Sequence[str]) -> list[str]:
    """age public keys from a command line: each is one, or ``@FILE`` with one a line and comments after ``#``.

    Raises ``Int8dError`` for a file without one; OSError.
    """
    found: list[str] = []
    for word in words:
        if not word.startswith("@"):
            found.append(word)
            continue
        lines = (line.split("#")[0].strip() for line in Path(word[1:]).read_text().splitlines())
        in_file = [line for line in lines if line]
        if not in_file:
            raise Int8dError(f"{word[1:]}: there is no recipient in it, one 'age1…' a line")
        found += in_file
    return list(dict.fromkeys(found))


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise Int8dError(f"'{name}' can't be a {what}: 1 to 64 of A-Z a-z 0-9 _ . -, and no dot first")


def _check_number(repository: Repository, name: str, number: int, group: str) -> None:
    """A device takes releases for all and for its group, and only ever higher ones."""
    if not 1 <= number <= _MAX_RELEASE:
        raise Int8dError(f"release {number}: releases are numbered from 1 on")
    seen = [
        e.release.release
        for e in repository.releases()
        if e.release.model == name and (not group or e.release.device_group in ("", group))
    ]
    if seen and number <= max(seen):
        whom = f"group '{group}'" if group else "some devices"
        raise Int8dError(
            f"release {number} of '{name}': {whom} may have release {max(seen)} already, and a device never goes "
            f"back: take {max(seen) + 1} or more"
        )


def _checked_model(path: Path) -> bytes:
    model = read(path)
    if not model.golden:
        raise ModelError(
            f"{path}: it has no golden inputs, by which a device tests that it answers as it should: build or import "
            "it again with 'int8d-make'"
        )
    return path.read_bytes()


def _encrypted(data: bytes, recipients: Sequence[str]) -> bytes:
    import pyrage

    keys = []
    for recipient in recipients:
        try:
            keys.append(pyrage.x25519.Recipient.from_str(recipient))
        except pyrage.RecipientError as e:
            hint = "; it is the public key that is wanted, not the secret one" if "SECRET" in recipient.upper() else ""
            shown = recipient if not hint else recipient[:14] + "…"
            raise Int8dError(f"'{shown}' is no recipient: an age public key begins with age1{hint}") from e
    encrypted: bytes = pyrage.encrypt(data, keys)
    return encrypted
