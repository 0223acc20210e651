"""A repository of signed releases, made in this process.

repo = make(tmp_path)                                   # keys and an empty, valid repository
repo.publish(variant(tmp_path, 1), release=1)
repo.folder, repo.root                                  # what is served; the root that a device trusts at first
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from agent.repository.release import Release, Rollout
from models.repository.expiry import Expiry
from models.repository.keys import Keys, init
from models.repository.publish import publish, revoke
from models.repository.repository import opened
from models.repository.upkeep import refresh, rotate


class FromFolder(FetcherInterface):
    """Reads addresses below a folder, as a web server gives them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._folder / url
        if not path.is_file():
            raise DownloadHTTPError("not found", 404)
        yield path.read_bytes()


@dataclass
class Repo:
    """folder: with ``metadata/`` and ``targets/``. keys: the private keys' folder. root: ``updates.root`` of a device.
    expires: of all that is signed from now on.
    """

    folder: Path
    keys: Path
    root: Path
    expires: Expiry = field(default_factory=Expiry)

    def publish(self, model: Path, release: int, name: str = "digits", group: str = "",
                recipients: tuple[str, ...] = (), rollout: Rollout = Rollout()) -> Release:  # fmt: skip
        with opened(self.folder, Keys(self.keys), self.expires, create=True) as repository:
            return publish(repository, model, name, release, group, recipients, rollout)

    def refresh(self) -> list[str]:
        with opened(self.folder, Keys(self.keys), self.expires) as repository:
            return refresh(repository)

    def rotate(self, role: str) -> None:
        """All keys of a role are replaced."""
        with opened(self.folder, Keys(self.keys), self.expires) as repository:
            rotate(repository, role)

    def revoke(self, release: int, reason: str, name: str = "digits") -> None:
        with opened(self.folder, Keys(self.keys), self.expires) as repository:
            revoke(repository, repository.find(name, release), reason)

    def target(self, release: int, name: str = "digits") -> Path:
        """The file that holds a release, as a web server finds it."""
        with opened(self.folder, Keys(self.keys)) as repository:
            entry = repository.find(name, release)
        parent, _, file = entry.path.rpartition("/")
        return self.folder / "targets" / parent / f"{entry.file.hashes['sha256']}.{file}"

    def client(self, state: Path) -> Updater:
        """A TUF client that begins with the first root; what it has seen it keeps in ``state``. One per refresh."""
        (state / "metadata").mkdir(parents=True, exist_ok=True)
        (state / "targets").mkdir(exist_ok=True)
        return Updater(
            str(state / "metadata"), "metadata/", str(state / "targets"), "targets/", FromFolder(self.folder),
            bootstrap=self.root.read_bytes(),
        )  # fmt: skip

    def copy(self, folder: Path) -> Path:
        """The repository as it is now, elsewhere."""
        return Path(shutil.copytree(self.folder, folder))


def make(folder: Path, expires: Expiry = Expiry()) -> Repo:
    """Makes ``folder/keys`` and ``folder/repository``, which has no release yet."""
    keys = init(folder / "keys", root_days=expires.root)
    repo = Repo(folder / "repository", keys.folder, keys.root, expires)
    with opened(repo.folder, keys, expires, create=True) as repository:
        repository.commit()
    return repo
