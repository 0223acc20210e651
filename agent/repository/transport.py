"""How bytes of the repository come here, whatever carries them.

A repository is a folder: ``metadata/`` and ``targets/``. ``https`` reads it from a web server, ``over_mqtt`` through
the broker from ``int8d-make serve --mqtt``; both can begin in the middle of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

Progress = Callable[[int], None]  # told how many bytes are here


class Transport(Protocol):
    """Reads files of a repository. Raises ``Refused``: ``unreachable``, ``not_found``, ``not_a_repository``,
    ``too_slow``, ``truncated``.
    """

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of ``path``, for example ``metadata/timestamp.json``, from ``offset`` on; ``length`` of them, or
        to the end. Bytes that come are given at once; a caller that has enough closes the iterator.
        """
        ...

    def close(self) -> None:
        """Ends its connections."""
        ...
