"""A TCP proxy on loopback that does what networks do: it delays, resets, and goes silent without a word.

    proxy = Proxy(broker.port)
    proxy.delay(0.02, 0.01)      # each way, 10-30 ms
    proxy.reset()                # every connection there is
    proxy.swallow("up", "down")  # half-open: the connections there are stay, and nothing passes any more

Runs an event loop on a thread of its own; the methods may be called from any thread.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Literal

Direction = Literal["up", "down"]  # to the target, from it
_CHUNK = 1 << 16
_WAITING = 256  # chunks under way in a direction; past it, the sender feels it


class Proxy:
    """Listens on ``port`` until ``stop``. seed: of the jitter."""

    def __init__(self, target: int, seed: int = 0) -> None:
        self._target, self._random = target, random.Random(seed)
        self._mean, self._jitter = 0.0, 0.0
        self._links: set[_Link] = set()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event
        self._begun = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="proxy", daemon=True)
        self._thread.start()
        assert self._begun.wait(10), "the proxy does not start"

    def delay(self, mean_s: float, jitter_s: float = 0.0) -> None:
        """From now on each chunk takes ``mean_s`` ± ``jitter_s`` each way; the order stays."""
        self._mean, self._jitter = mean_s, jitter_s

    def latency(self) -> float:
        """Seconds that the next chunk takes."""
        return max(0.0, self._mean + self._jitter * self._random.uniform(-1, 1)) if self._mean else 0.0

    def reset(self) -> None:
        """Ends every connection by RST, on both sides."""
        self._call(lambda: [link.reset() for link in list(self._links)])

    def swallow(self, *directions: Direction) -> None:
        """The connections there are lose all that goes in these directions, and no end of one side reaches the other.
        New connections are sound.
        """
        self._call(lambda: [link.swallowed.update(directions) for link in self._links])

    def stop(self) -> None:
        """Ends everything."""
        self._call(self._end.set)
        self._thread.join(10)

    def _call(self, what: Callable[[], object]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (what(), done.set()))
        assert done.wait(10), "the proxy's loop hangs"

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, sock=self._socket)
        self._begun.set()
        await self._end.wait()
        server.close()
        for link in list(self._links):
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), target)
        self._links.add(link)
        try:
            await link.run()
        except asyncio.CancelledError:
            pass  # by stop; a stream's own callback would report it as an error
        finally:
            self._links.discard(link)


class _Link:
    """A connection and its continuation."""

    def __init__(
        self,
        proxy: Proxy,
        source: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        target: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy, self._source, self._target = proxy, source, target
        self.swallowed: set[Direction] = set()
        for _, writer in (source, target):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def run(self) -> None:
        """Until both sides have ended."""
        await asyncio.gather(
            self._carry("up", self._source[0], self._target[1]), self._carry("down", self._target[0], self._source[1])
        )
        for _, writer in (self._source, self._target):
            writer.close()

    def reset(self) -> None:
        for _, writer in (self._source, self._target):
            sock = writer.get_extra_info("socket")
            if sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _carry(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING)
        delivery = asyncio.create_task(self._deliver(chunks, writer))
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            if direction not in self.swallowed:
                await chunks.put((loop.time() + self._proxy.latency(), data))
            if not data:
                break
        if self.swallowed:  # the other side must not learn of it; it ends by itself some day
            delivery.cancel()
        else:
            await delivery

    async def _deliver(self, chunks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await chunks.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not data:
                writer.close()
                return
            try:
                if not writer.is_closing():
                    writer.write(data)
                    await writer.drain()
            except OSError:
                pass  # that side is gone; its own reader ends
