"""What keeps a repository alive: signatures renewed before they expire, keys replaced, old releases removed.

At each moment a client with any earlier root follows: what a replaced key signed is signed by the old and the new key
first, then the root names the new one. Where the old key is lost, the root comes first; a client that looks in between
refuses, and takes the repository as soon as it is whole.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from tuf.api.metadata import Metadata, Root

from agent.errors import Int8dError
from models.repository.expiry import after
from models.repository.keys import ROLES
from models.repository.repository import Entry, Repository, remaining_days


def refresh(repository: Repository) -> list[str]:
    """Signs ``timestamp.json`` anew, and the other roles that have less than half of their days left, root where its
    keys are here. Gives the roles that were signed. Raises ``Int8dError`` where a key is missing.
    """
    signed = repository.commit(*(role for role in ("targets", "snapshot") if _due(repository, role)))
    if _due(repository, "root") and _root_keys_here(repository):
        _add(repository, _next_root(repository), repository.root.signed)
        signed.append("root")
    return signed


def rotate(repository: Repository, role: str, chosen: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """Replaces keys of a role. chosen: beginnings of their ids; None: all of the role's.

    Gives the ids that came and those that went; a private key that went is renamed to ``….pem.old``.
    Raises ``Int8dError``: root keys that are missing, an id that the role does not have.
    """
    if role not in ROLES:
        raise Int8dError(f"'{role}' is no role; the roles are {', '.join(ROLES)}")
    keys, old = repository.keys, repository.root.signed
    gone = _chosen(old.roles[role].keyids, role, chosen)
    keys.require("root", old)
    root = _next_root(repository)
    come = []
    for keyid in gone:
        key = keys.add(role).public_key
        root.revoke_key(keyid, role)
        root.add_key(key, role)
        come.append(key.keyid)
    if role == "root":
        _add(repository, root, old)
    elif all(keyid in keys.of(role) for keyid in gone):
        repository.commit(role, also={role: root})
        _add(repository, root, old)
    else:
        _add(repository, root, old)
        repository.commit(role)
    for keyid in gone:
        keys.forget(role, keyid)
    return come, gone


def prune(repository: Repository, keep: int) -> list[Entry]:
    """Removes the oldest releases: of each model and group the ``keep`` highest stay. Gives what went.

    A device that is fetching one of them takes a later one; one that serves it goes on serving it.
    """
    if keep < 1:
        raise Int8dError("the newest release of each model stays: keep 1 or more")
    kept: dict[tuple[str, str], int] = {}
    gone = []
    for entry in sorted(repository.releases(), key=lambda e: e.release.release, reverse=True):
        whose = entry.release.model, entry.release.device_group
        kept[whose] = kept.get(whose, 0) + 1
        if kept[whose] > keep:
            repository.drop(entry)
            gone.append(entry)
    if gone:
        repository.commit("targets")
    return gone


def _next_root(repository: Repository) -> Root:
    root: Root = copy.deepcopy(repository.root.signed)
    root.version += 1
    root.expires = after(repository.expires.root)
    return root


def _add(repository: Repository, root: Root, old: Root) -> None:
    metadata = Metadata(root)
    repository.keys.sign("root", metadata, old, root)
    repository.add_root(metadata)


def _chosen(keyids: list[str], role: str, chosen: Sequence[str] | None) -> list[str]:
    if chosen is None:
        return list(keyids)
    found = []
    for start in chosen:
        matching = [keyid for keyid in keyids if keyid.startswith(start)]
        if len(matching) != 1:
            there = ", ".join(keyid[:16] for keyid in keyids)
            raise Int8dError(f"'{start}' is not the beginning of one key's id; {role} has {there}")
        found += matching
    return list(dict.fromkeys(found))


def _due(repository: Repository, role: str) -> bool:
    days: float = getattr(repository.expires, role)
    return remaining_days(getattr(repository, role)) < days / 2


def _root_keys_here(repository: Repository) -> bool:
    try:
        repository.keys.require("root", repository.root.signed)
    except Int8dError:
        return False
    return True
