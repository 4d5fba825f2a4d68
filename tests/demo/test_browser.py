"""The page in a real browser: images appear while they are drawn."""

import asyncio

import pytest

from jaxspec.pipeline.pipeline import load_pipeline
from tests.demo.browser import CHROMIUM, visit
from tests.demo.running import running
from tests.tiny_bundle import save_bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]
STATE = "document.getElementById('state')"
# Pixels of the first image, and whether a drawing has ended.
PIXELS = "document.querySelector('canvas.image').toDataURL()"
DONE = f"{STATE}.dataset.done === 'yes'"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("aiohttp")
    pipe = load_pipeline(save_bundle(tmp_path_factory.mktemp("tiny")))
    with running(pipe) as address:
        yield address


def fill(draft=True, **values):
    """A script that sets fields of the form."""
    script = f"document.getElementById('draft').checked = {str(draft).lower()}"
    for name, value in values.items():
        script += f"; document.getElementById('{name}').value = '{value}'"
    return script


def test_drawing_with_and_without_the_drafter_ends_with_the_same_image(address):
    async def steps(tab):
        await tab.wait("document.getElementById('prompt')?.value")
        await tab.run(fill(prompt="2", count=2, seed=5))
        seen = []
        for draft in (True, False):
            await tab.run(fill(draft=draft))
            await tab.run("document.getElementById('draw').click()")
            await tab.wait(f"!({DONE})")
            await tab.wait(DONE)
            await tab.wait("last.final && last.sheet.complete")
            seen.append((await tab.run(PIXELS), await tab.run(f"{STATE}.textContent")))
        await tab.run(fill(seed=6))
        await tab.run("document.getElementById('draw').click()")
        await tab.wait(f"!({DONE})")
        await tab.wait(DONE)
        await tab.wait("last.final && last.sheet.complete")
        return seen, await tab.run(PIXELS)

    (drafted, plain), other = asyncio.run(visit(address, steps))
    assert drafted[0] == plain[0] != other
    assert "drafter jacobi" in drafted[1] and "plain decoding" in plain[1]
    assert "1.00 per call" in plain[1] and "1.00 per call" not in drafted[1]


def test_mistakes_are_shown_and_nothing_is_drawn(address):
    async def steps(tab):
        await tab.wait("document.getElementById('prompt')?.value")
        await tab.run(fill(prompt=""))
        await tab.run("document.getElementById('draw').click()")
        await tab.wait(f"{STATE}.className === 'error'")
        return await tab.run(f"{STATE}.textContent")

    assert "the prompt is empty" in asyncio.run(visit(address, steps))
