"""A server of the page in a thread of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jaxspec.demo.server import HOST, free_socket, make_app


@contextmanager
def running(pipe) -> Iterator[str]:
    """Serves a pipeline, and yields the address of the page."""
    from aiohttp import web

    started, loop = threading.Event(), asyncio.new_event_loop()
    listener = free_socket(0)
    runner = web.AppRunner(make_app(pipe), shutdown_timeout=1.0)

    async def start():
        await runner.setup()
        await web.SockSite(runner, listener).start()
        started.set()

    def run():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    yield f"http://{HOST}:{listener.getsockname()[1]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
