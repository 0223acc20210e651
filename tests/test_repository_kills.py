"""A publisher is killed before each change of a name on disk: clients go on, and so does the next publisher."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadHTTPError

from agent.repository.release import Release, release_of
from tests.agent_process import DIGITS
from tests.repository import Repo, make

CHANGES = {"os.rename", "os.remove", "os.mkdir"}
OPERATIONS: dict[str, Callable[[Repo], object]] = {
    "publish": lambda repo: repo.publish(DIGITS, 2),
    "refresh": lambda repo: repo.refresh(),
    "revoke": lambda repo: repo.revoke(1, "wrong labels"),
    "rotate root": lambda repo: repo.rotate("root"),
    "rotate targets": lambda repo: repo.rotate("targets"),
    "rotate snapshot": lambda repo: repo.rotate("snapshot"),
    "rotate timestamp": lambda repo: repo.rotate("timestamp"),
}


def _killed(operation: Callable[[Repo], object], repo: Repo, at: int) -> None:
    """In a child: the interpreter tells of each change just before it is made."""
    changes = 0

    def before(event: str, args: tuple[object, ...]) -> None:
        nonlocal changes
        if event in CHANGES:
            changes += 1
            if changes == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before)
    operation(repo)
    os._exit(0)


def ends(operation: Callable[[Repo], object], repo: Repo, at: int) -> bool:
    """Whether it was through before its change number ``at``."""
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(operation, repo, at))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def releases(repo: Repo, state: Path) -> list[Release | None]:
    """What a client sees of releases 1 and 2, and that it can download what it sees."""
    client = repo.client(state)
    found = []
    for path in ("digits/1.int8.safetensors", "digits/2.int8.safetensors"):
        target = client.get_targetinfo(path)
        if target is not None:
            client.download_target(target)
            found.append(release_of(target.custom))
    return found


def copied(base: Path, folder: Path) -> Repo:
    """The repository, its keys and a client's state, elsewhere."""
    shutil.copytree(base, folder)
    return Repo(folder / "repository", folder / "keys", folder / "keys" / "root.json")


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_change_leaves_the_old_state_or_the_new_one(tmp_path: Path, name: str) -> None:
    operation, base = OPERATIONS[name], tmp_path / "base"
    base.mkdir()
    whole = make(base)
    whole.publish(DIGITS, 1)
    before = releases(whole, base / "box")
    done = copied(base, tmp_path / "done")
    operation(done)
    after = releases(done, tmp_path / "done" / "box")
    for at in range(1, 200):
        folder = tmp_path / str(at)
        repo = copied(base, folder)
        if ends(operation, repo, at):
            break
        found = releases(repo, folder / "box")
        assert found in (before, after)
        assert releases(repo, folder / "new box") == found
        if found == before:
            operation(repo)
        assert releases(repo, folder / "box") == after
        repo.refresh()
        assert releases(repo, folder / "new box") == after
        assert not [path for path in repo.folder.rglob(".*") if path.name != ".lock"]
    assert at > 1


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_killed_while_it_replaces_a_lost_key_is_whole_after_the_next_refresh(tmp_path: Path, role: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    whole = make(base)
    whole.publish(DIGITS, 1)
    before = releases(whole, base / "box")
    for path in whole.keys.rglob(f"{role}-*.pem"):
        path.unlink()
    for at in range(1, 200):
        folder = tmp_path / str(at)
        repo = copied(base, folder)
        if ends(OPERATIONS[f"rotate {role}"], repo, at):
            break
        if (repo.folder / "metadata" / "2.root.json").exists():
            repo.refresh()
        else:
            assert releases(repo, folder / "box") == before
            repo.rotate(role)
        assert releases(repo, folder / "box") == before
        assert releases(repo, folder / "new box") == before
    assert at > 4


def test_killed_while_it_makes_the_repository_begins_again(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    keys = make(tmp_path / "0").keys
    for at in range(1, 200):
        folder = tmp_path / str(at)
        repo = Repo(folder / "repository", keys, keys / "root.json")
        folder.mkdir()
        if ends(OPERATIONS["publish"], repo, at):
            break
        if (repo.folder / "metadata" / "timestamp.json").exists():
            assert len(releases(repo, folder / "box")) == 1
        else:
            with pytest.raises(DownloadHTTPError):
                releases(repo, folder / "box")
            repo.publish(DIGITS, 2)
        assert len(releases(repo, folder / "box")) == 1
    assert at > 6
