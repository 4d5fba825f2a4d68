"""Chromium without a window, driven by its debugging protocol."""

import asyncio
import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


class Tab:
    """One tab of a browser.

    Args:
      socket: web socket of the tab.
    """

    def __init__(self, socket):
        self.socket, self.count = socket, 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Result of a method of the protocol."""
        self.count += 1
        await self.socket.send_json(
            {"id": self.count, "method": method, "params": params}
        )
        while True:
            answer = json.loads((await self.socket.receive()).data)
            if answer.get("id") == self.count:
                return answer["result"]

    async def run(self, script: str) -> Any:
        """Value of a script in the page."""
        found = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def wait(self, condition: str, seconds: float = 120.0) -> None:
        """Waits until a script is true."""
        end = time.monotonic() + seconds
        while not await self.run(condition):
            assert time.monotonic() < end, f"not true in {seconds} s: {condition}"
            await asyncio.sleep(0.05)

    async def screenshot(self, file: Path) -> None:
        """Writes what the tab shows, a PNG."""
        found = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(found["data"]))


async def visit(address: str, steps, width: int = 1000, height: int = 900) -> Any:
    """Opens a page, and returns what the coroutine `steps(tab)` does."""
    import aiohttp

    with TemporaryDirectory() as profile:
        command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu"]
        command += [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        command += [f"--window-size={width},{height}", address]
        browser = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert browser.stderr is not None
            lines = iter(browser.stderr.readline, "")
            found = next(filter(None, (re.search(r"ws://([^/]+)/", x) for x in lines)))
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{found[1]}/json") as response:
                    tabs = await response.json()
                page = next(x for x in tabs if x["type"] == "page")
                async with session.ws_connect(
                    page["webSocketDebuggerUrl"], max_msg_size=0
                ) as socket:
                    return await steps(Tab(socket))
        finally:
            browser.terminate()
            browser.wait()
