"""Figure of continued images and of mixed classes, from the embedded model.

`python docs/figures/continued.py` writes `docs/figures/continued.png`. The upper half
of one image is continued as several classes; below, two classes are mixed.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import jaxspec
from jaxspec.pipeline.decoding import decode_images

SIDE, GAP, TEXT = 128, 8, 22  # pixels
INK = "#1f2933"
FIRST, LAST = "Apple 10", "Cherry 1"
CLASSES = {
    "Apple 10": "Apple 10, same key",
    "Apple 18": "Apple 18",
    "Apple 21": "Apple 21",
    "Apple 5": "Apple 5",
    "Apple Golden 3": "Apple Golden 3",
    "Apple Crimson Snow 1": "Apple Crimson Snow",
}
SETTINGS = {"seed": 0, "cfg_scale": 2.0, "batch_size": 1}


def continued(pipe: jaxspec.Pipeline):
    """Images of the upper row, with their labels."""
    source = pipe([FIRST], **SETTINGS).tokens
    kept = decode_images(pipe.bundle, source[:, : source.shape[1] // 2])
    yield kept[0], "8 rows of tokens"
    for i, (name, label) in enumerate(CLASSES.items()):
        settings = {**SETTINGS, "seed": min(i, 1)}
        out = pipe([name], prefix=source, rows=8, **settings)
        yield np.asarray(out.images[0]), label


def mixed(pipe: jaxspec.Pipeline):
    """Images of the lower row, with their labels."""
    for weight in np.linspace(0, 1, len(CLASSES) + 1):
        label = {FIRST: 1 - weight, LAST: weight}
        text = f"{1 - weight:.0%} apple, {weight:.0%} cherry"
        yield np.asarray(pipe([label], **SETTINGS).images[0]), text


def main() -> None:
    """Writes the figure."""
    pipe = jaxspec.load_pipeline("fruits64")
    rows = list(continued(pipe)), list(mixed(pipe))
    width, height = SIDE + GAP, SIDE + TEXT + GAP
    sheet = Image.new("RGB", (GAP + width * len(rows[0]), GAP + height * 2), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for j, row in enumerate(rows):
        for i, (image, label) in enumerate(row):
            left, top = GAP + i * width, GAP + j * height
            large = Image.fromarray(image).resize(
                (SIDE, SIDE), Image.Resampling.BICUBIC
            )
            sheet.paste(large, (left, top))
            middle = left + SIDE // 2, top + SIDE + 4
            canvas.text(middle, label, INK, font, anchor="ma")
    sheet.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
