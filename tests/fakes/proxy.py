"""A TCP proxy on loopback that makes a good link bad: slow, cut, or silently dead.

with proxying(port) as link:
    link.port            # connect here instead
    link.delay_s = 0.04  # each way
    link.reset()         # every connection is cut, as by a router that forgot it
    link.stall()         # half open: nothing comes through any more, and nobody is told
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Link:
    """The way through the proxy. `n_connections` counts every connection ever made."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay_s = 0.0
        self.port = 0
        self.n_connections = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._open: list[asyncio.StreamWriter] = []
        self._dead: set[int] = set()
        self._refusing = False

    def reset(self) -> None:
        """Cut every connection with a RST."""
        self._in_loop(self._cut)

    def stall(self) -> None:
        """Let nothing through any more on the connections there are; new ones work."""
        self._in_loop(lambda: self._dead.update(map(id, self._open)))

    def refuse(self, refusing: bool = True) -> None:
        """Cut what there is and accept nothing more, or accept again."""
        self._refusing = refusing
        if refusing:
            self.reset()

    def _in_loop(self, change: object) -> None:
        done = threading.Event()

        def act() -> None:
            change()  # type: ignore[operator]
            done.set()

        self._loop.call_soon_threadsafe(act)
        done.wait(5)

    def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open += [writer, far_writer]
        with suppress(asyncio.CancelledError):  # the block has ended
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrivals: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send() -> None:
            while True:
                due, block = await arrivals.get()
                if (wait := due - self._loop.time()) > 0:
                    await asyncio.sleep(wait)
                if id(writer) in self._dead:
                    continue
                if not block:
                    writer.close()
                    return
                writer.write(block)
                await writer.drain()

        sending = asyncio.ensure_future(send())
        with suppress(OSError):
            while block := await reader.read(65536):
                arrivals.put_nowait((self._loop.time() + self.delay_s, block))
        arrivals.put_nowait((self._loop.time() + self.delay_s, b""))
        with suppress(OSError):
            await sending


@contextmanager
def proxying(target: int) -> Iterator[Link]:
    """A way to `target` on this machine. It ends with the block."""
    link = Link(target)

    def run() -> None:
        asyncio.set_event_loop(link._loop)
        link._loop.run_until_complete(link._serve())
        link._loop.run_forever()
        left = asyncio.all_tasks(link._loop)
        for task in left:
            task.cancel()
        link._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        link._loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    link._ready.wait(5)
    try:
        yield link
    finally:
        link.reset()
        link._loop.call_soon_threadsafe(link._loop.stop)
        thread.join()
