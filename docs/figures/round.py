"""Figure of one decoding round of the embedded model: draft, verify, accept.

`python docs/figures/round.py` writes `docs/figures/round.png`. Everything in it is
computed: the image before and after the round, the drafted tokens, and the path.
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import jaxspec
from jaxspec.core.generator import advance
from jaxspec.pipeline.decoding import decode_images
from jaxspec.speculative.draft_step import draft
from jaxspec.speculative.verify_step import verify

SCALE = 2  # pixels per unit of length
WIDTH, HEIGHT = 1180, 388
INK, GRAY, PALE = "#1f2933", "#7b8794", "#d5dae0"
GREEN, ORANGE, BLUE = "#0b8457", "#d9620b", "#1f6fb2"  # accepted, target's own, drafted
TREE = "0,1,2,00,01,10,000,001,0000"


def compute_round(label: str, seed: int, rounds: int):
    """Tokens before and after a round, with its draft and its accepted path."""
    pipe = jaxspec.load_pipeline("fruits64")
    model = jaxspec.Transformer(pipe.bundle.prior.config)
    engine = jaxspec.Engine(
        model.as_target(), 256, pipe.loaded.drafter, jaxspec.Tree.named(TREE)
    )
    variables = engine.variables(
        pipe.bundle.prior.params, drafter=pipe.bundle.drafter.params
    )
    state = jax.jit(engine.init)(
        variables,
        np.array([pipe.class_names.index(label)]),
        sampling=jaxspec.Sampling.create(cfg_scale=2.0),
        keys=jaxspec.batch_keys(seed, 1),
    )
    state = jax.jit(partial(advance, engine, steps=rounds))(variables, state)
    drafted = jax.jit(partial(draft, engine))(variables, state)
    verified = jax.jit(partial(verify, engine))(variables, state, drafted)
    after = jax.jit(engine.step)(variables, state)
    count = int(verified.accepted[0]) + 1
    before, after = engine.result(state).tokens, engine.result(after).tokens
    images = [decode_images(pipe.bundle, np.asarray(x), partial=True)[0]
              for x in (before, after)]  # fmt: skip
    return {
        "images": images,
        "tree": engine.tree,
        "start": int(state.length[0]),
        "nodes": np.asarray(drafted.draft.tokens[0]),
        "path": np.asarray(verified.path[0])[:count].tolist(),
        "emitted": np.asarray(verified.tokens[0])[:count].tolist(),
    }


class Canvas:
    """Drawing in units of length, at `SCALE` pixels each."""

    def __init__(self):
        size = (WIDTH * SCALE, HEIGHT * SCALE)
        self.image = Image.new("RGB", size, "white")
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x, y, text, size=15, color=INK, anchor="la"):
        font = ImageFont.load_default(size * SCALE)
        xy = (x * SCALE, y * SCALE)
        self.draw.multiline_text(
            xy, text, color, font, anchor if "\n" not in text else None, spacing=8
        )

    def line(self, x0, y0, x1, y1, color, width=1.5):
        ends = [v * SCALE for v in (x0, y0, x1, y1)]
        self.draw.line(ends, color, round(width * SCALE))

    def box(self, x, y, w, h, fill, outline, width=1.5, radius=7):
        corners = [v * SCALE for v in (x, y, x + w, y + h)]
        self.draw.rounded_rectangle(
            corners, radius * SCALE, fill, outline, round(width * SCALE)
        )

    def tokens(self, x, y, pixels, size, marks, start):
        """An image of 16 x 16 tokens, with some of them outlined."""
        side = size * SCALE
        missing = (pixels == 128).all(axis=-1, keepdims=True)
        pixels = np.where(missing, np.uint8(236), pixels)
        tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        self.image.paste(tile, (x * SCALE, y * SCALE))
        self.box(x, y, size, size, None, PALE, 1, 0)
        cell = size / 16
        for i, color in enumerate(marks):
            row, column = divmod(start + i, 16)
            corner = x + column * cell, y + row * cell
            self.box(*corner, cell, cell, None, color, 2, 0)


def node_positions(tree, x, y):
    """Center of each node: depth from left to right, siblings from top to bottom."""
    row, places = {}, {}
    free = 0
    order = sorted(range(tree.size), key=lambda n: _ranks(tree, n))
    for node in order:
        parent = tree.parents[node]
        first = node and tree.ranks[node] == 0
        row[node] = row[parent] if first else free
        free += not first
        places[node] = x + 60 * tree.depths[node], y + 44 * row[node]
    return places


def _ranks(tree, node):
    path = []
    while node:
        path.append(tree.ranks[node])
        node = tree.parents[node]
    return path[::-1]


def draw_tree(canvas, found, x, y, verified):
    """The drafted tree; after verification with its path and the target's own token."""
    tree, path = found["tree"], found["path"]
    places = node_positions(tree, x, y)
    for node in range(1, tree.size):
        (x0, y0), (x1, y1) = places[tree.parents[node]], places[node]
        on_path = verified and node in path
        color = GREEN if on_path else PALE if verified else GRAY
        canvas.line(x0 + 19, y0, x1 - 19, y1, color, 3 if on_path else 1.5)
    if verified:
        x0, y0 = places[path[-1]]
        x1, y1 = x0 + 60, y0 + 44
        canvas.line(x0 + 12, y0 + 10, x1 - 19, y1, ORANGE, 3)
        places["own"] = x1, y1
    for node, (cx, cy) in places.items():
        token = found["emitted"][-1] if node == "own" else found["nodes"][node]
        color = INK if node == 0 else BLUE
        if verified:
            color = GREEN if node in path and node else color if node == 0 else PALE
            color = ORANGE if node == "own" else color
        strong = not verified or color != PALE
        fill = color if verified and node not in (0,) and strong else "white"
        ink = "white" if fill != "white" else color if strong else GRAY
        canvas.box(cx - 19, cy - 14, 38, 28, fill, color)
        canvas.text(cx, cy, str(token), 14, ink, "mm")


def main():
    """Computes the round and writes the figure."""
    found = compute_round("Tomato 1", seed=4, rounds=48)
    canvas, drafts, start = Canvas(), found["tree"].size - 1, found["start"]
    for x, number, title in ((20, 1, "Draft"), (566, 2, "Verify"), (924, 3, "Accept")):
        canvas.box(x, 18, 28, 28, INK, INK, radius=14)
        canvas.text(x + 14, 32, str(number), 16, "white", "mm")
        canvas.text(x + 40, 32, title, 22, INK, "lm")
    before, after = found["images"]
    canvas.tokens(20, 68, before, 224, [INK], start - 1)
    draw_tree(canvas, found, 278, 92, False)
    draw_tree(canvas, found, 586, 92, True)
    count = len(found["path"])
    marks = [GREEN] * (count - 1) + [ORANGE]
    canvas.tokens(924, 68, after, 224, marks, start)
    canvas.text(20, 310, f"The drafter proposes a tree of {drafts} tokens\n"
                "after the newest one.")  # fmt: skip
    canvas.text(566, 310, "One pass of the target scores the tree.\n"
                "A token is accepted if the target\n"
                "samples it after its parent.")  # fmt: skip
    canvas.text(924, 310, f"{count} tokens from one target call,\n"
                "the same as in plain decoding.")  # fmt: skip
    canvas.image.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
