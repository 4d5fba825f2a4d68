"""Web server of the page, for this machine alone."""

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

from jaxspec.demo.drawing import description, events, read_request
from jaxspec.errors import ConfigError
from jaxspec.pipeline.pipeline import Pipeline

HOST = "127.0.0.1"
# Names by which a browser on this machine may ask; others are a page elsewhere whose
# name was made to point here.
NAMES = ("127.0.0.1", "localhost")


def check_package() -> None:
    """Checks that the package of the server is installed.

    Raises:
      ConfigError: it is not installed; the message has the command that does.
    """
    _web()


def make_app(pipe: Pipeline) -> Any:
    """The web application, an `aiohttp.web.Application`.

    `/` is the page, `/about` describes the models, and `/draw` answers with one event
    for each round (server-sent events). One drawing is made at a time.

    Args:
      pipe: pipeline that draws.

    Raises:
      ConfigError: the package `aiohttp` is not installed.
    """
    web = _web()
    page = files("jaxspec.demo").joinpath("page.html").read_bytes()
    # JAX is used from one thread, so that drawings do not share the device.
    thread = ThreadPoolExecutor(1)
    one_by_one = asyncio.Lock()

    @web.middleware
    async def local(request, handler):
        if request.host.rpartition(":")[0] not in NAMES and request.host not in NAMES:
            raise web.HTTPForbidden(text="this page is for this machine alone")
        return await handler(request)

    async def show(request):
        return web.Response(body=page, content_type="text/html", charset="utf-8")

    async def about(request):
        return web.json_response(description(pipe))

    async def draw(request):
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        try:
            found = events(pipe, read_request(request.query, pipe))
        except ConfigError as error:
            found = iter([{"kind": "error", "message": str(error)}])
        async with one_by_one:
            await _send(response, found, thread)
        return response

    app = web.Application(middlewares=[local])
    app.router.add_get("/", show)
    app.router.add_get("/about", about)
    app.router.add_get("/draw", draw)
    return app


async def _send(response, found: Iterator[dict[str, Any]], thread) -> None:
    """Sends events as they come; ends the generation if the page has gone."""
    loop = asyncio.get_running_loop()
    ended = object()
    try:
        while True:
            event = await loop.run_in_executor(thread, next, found, ended)
            if event is ended:
                return
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
    except ConnectionResetError:
        pass  # the page has gone
    finally:
        thread.submit(getattr(found, "close", lambda: None))


def free_socket(port: int) -> socket.socket:
    """A socket that listens on a port of this machine; 0 takes any free one.

    Raises:
      ConfigError: the port is taken or not allowed.
    """
    found = socket.socket()
    # A port may be used again at once after the last server has ended.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen()  # a browser may connect before the server accepts
    except (OSError, OverflowError) as error:
        found.close()
        raise ConfigError(
            f"port {port} cannot be used ({error}); choose another with --port"
        ) from None
    return found


def serve(pipe: Pipeline, listener: socket.socket) -> None:
    """Serves the page until the process is interrupted.

    Args:
      pipe: pipeline that draws.
      listener: socket of `free_socket`.
    """
    _web().run_app(make_app(pipe), sock=listener, print=None, shutdown_timeout=1.0)


def _web() -> Any:
    try:
        from aiohttp import web  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "the page needs the package aiohttp: pip install 'jaxspec-decoding[demo]'"
        ) from None
    return web
