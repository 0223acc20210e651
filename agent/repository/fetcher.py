"""Metadata for python-tuf, through a ``Transport``.

python-tuf asks for at most as many bytes as the snapshot or timestamp announces. Here a file may come whole up to the
role's own limit: a file of another state of the repository is then told from data without an end.
"""

from __future__ import annotations

from collections.abc import Iterator

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from agent.repository.reasons import Refused
from agent.repository.transport import Transport

FOLDER = "metadata/"
CONFIG = UpdaterConfig(max_root_rotations=256)
LIMITS = {
    "root": CONFIG.root_max_length,
    "timestamp": CONFIG.timestamp_max_length,
    "snapshot": CONFIG.snapshot_max_length,
    "targets": CONFIG.targets_max_length,
}


class Fetcher(FetcherInterface):
    """``last``: the name and the bytes of what came last, for who has to say why it was not good."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.last: tuple[str, bytes] = ("", b"")

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self._transport.read(url)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """A metadata file. Raises ``Refused``, and ``DownloadHTTPError`` for a root that is not there."""
        role = role_of(url)
        limit = max(max_length, LIMITS.get(role, max_length))
        got = bytearray()
        pieces = self._transport.read(url)
        try:
            for data in pieces:
                got += data
                if len(got) > limit:
                    raise Refused("endless_data", f"'{url}' is longer than {limit} bytes")
        except Refused as e:
            if e.code == "not_found" and role == "root":
                raise DownloadHTTPError(str(e), 404) from e
            raise
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()  # no more of it must come
        self.last = (url, bytes(got))
        return self.last[1]


def role_of(url: str) -> str:
    """``metadata/12.snapshot.json`` is ``snapshot``'s."""
    return url.removeprefix(FOLDER).removesuffix(".json").rpartition(".")[2]
