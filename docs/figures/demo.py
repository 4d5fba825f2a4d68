"""Screenshot of the page of `jaxspec demo`, half-way through a drawing.

`python -m docs.figures.demo` writes `docs/figures/demo.png`. Needs Chromium and the
package aiohttp.
"""

import asyncio
from pathlib import Path

from PIL import Image

from jaxspec.pipeline.embedded import CAPTIONS
from jaxspec.pipeline.pipeline import load_pipeline
from tests.demo.browser import Tab, visit
from tests.demo.running import running

# Share of the tokens after which the screenshot is taken.
SHARE = 0.6
FILE, HEIGHT = Path(__file__).with_suffix(".png"), 660


async def shoot(tab: Tab) -> None:
    """Draws once, to compile, then takes a screenshot of a second drawing."""
    state = "document.getElementById('state')"
    await tab.wait("document.getElementById('prompt')?.value")
    await tab.run("document.getElementById('draw').click()")
    await tab.wait(f"{state}.dataset.done === 'yes'")
    total = int((await tab.run(f"{state}.textContent")).split()[0])
    await tab.run("document.getElementById('again').click()")
    words = f"Number({state}.textContent.match(/: (\\d+) tokens/)?.[1])"
    await tab.wait(f"{words} > {SHARE * total}")
    await tab.screenshot(FILE)


def main() -> None:
    """Writes the figure, with few colors."""
    with running(load_pipeline(CAPTIONS)) as address:
        asyncio.run(visit(address, shoot, width=900, height=900))
    image = Image.open(FILE).convert("RGB")
    image.crop((0, 0, image.width, HEIGHT)).quantize(128).save(FILE, optimize=True)


if __name__ == "__main__":
    main()
