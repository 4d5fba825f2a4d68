"""Plain decoding against the bound that memory sets, beside other ways of doing it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.bench import passes
from jaxspec.bench.peers import torch_calls, torch_words
from jaxspec.bench.plot import Line, Panel, plot_panels
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.roofline.work import pass_work
from jaxspec.bench.subjects import find_subject
from jaxspec.bench.tables import environment, heading, table
from jaxspec.bench.timing import later, noted, side_by_side
from jaxspec.bench.variants import Variant
from jaxspec.models.transformer import Transformer
from jaxspec.timing import Timing, plotted, ratio_fields, shown

KEYS = ("model", "batch", "tokens", "way")
FILTERS = {"top_k": 1000, "top_p": 0.95}
FILTERED = ", top-k 1000, top-p 0.95"


def bench_decode(
    models: list[str],
    batches: list[int],
    variants: list[Variant],
    *,
    grid: int,
    tokens: int,
    dtype: str,
    repeats: int,
    peers: bool = True,
    checkpoint: str | None = None,
    options: dict[str, str] | None = None,
) -> dict[str, Any]:
    """One row for each model, batch and way; all ways of a batch in turn.

    Args:
      models: see `find_subject`.
      batches: images side by side; guided, so twice as many rows.
      variants: of our own program.
      grid: tokens along a side, of published sizes.
      tokens: of each image, at most; 0 is all.
      dtype: of weights and caches.
      repeats: timed runs.
      peers: whether PyTorch is measured, where it is installed.
      checkpoint: what "default" means.
      options: of XLA's compiler.
    """
    ceilings, rows, failed = measure_ceilings(dtype), [], {}
    build = passes.build_here(options)
    cells = [(m, b) for m in models for b in batches]
    with tqdm(total=len(cells), desc="decode", unit="cell") as bar:
        for name, batch in cells:
            find = partial(
                find_subject, name, grid=grid, dtype=dtype, checkpoint=checkpoint
            )
            plain = find()
            config = plain.prior.config
            length = min(tokens or config.sequence_length, config.sequence_length)
            work = partial(
                pass_work,
                config,
                rows=2 * batch,
                nodes=1,
                filled=config.prefix_length + length / 2,
                itemsize=jnp.dtype(dtype).itemsize,
            )
            calls, works, wrong = {}, {}, {}
            for variant in variants:
                bundle = find(int8=True) if variant.int8 else plain
                model = Transformer(config, variant.attention)
                loop = partial(passes.decode_loop, cache_stages=variant.cache_stages)
                loops: dict[str, Callable[..., passes.Program]] = {"": loop}
                if variant.cache_stages == 1:
                    loops[", model alone"] = passes.forward_loop
                if variant == variants[0]:
                    loops[FILTERED] = partial(loop, filters=FILTERS)
                for words, make in loops.items():
                    way = f"jaxspec{variant.words}{words}"
                    given = model, bundle.prior.params, batch, length, build
                    calls[way] = later(make, *given)
                    works[way] = work(int8=variant.int8)
            if peers:
                with noted(wrong, "torch"):
                    found = torch_calls(config, plain.prior.params, batch, length)
                    calls |= found
                    works |= dict.fromkeys(found, work())
            for way, timing in side_by_side(calls, repeats, failed=wrong).items():
                step, bound = timing.per(length), works[way].bound(ceilings)
                rows.append(
                    {
                        "model": name,
                        "batch": batch,
                        "way": way,
                        "tokens": length,
                        **step.fields(),
                        "bytes": works[way].bytes,
                        "flops": works[way].flops,
                        "bound_seconds": bound,
                        **ratio_fields(achieved=(Timing.exact(bound), step)),
                    }
                )
            failed |= {f"{name}, batch {batch}, {way}": e for way, e in wrong.items()}
            bar.update()
    return {
        "dtype": dtype,
        "repeats": repeats,
        "compiler_options": options or {},
        "ceilings": ceilings.fields(),
        "peers": torch_words() if peers else "PyTorch was left out",
        "failed": failed,
        "rows": rows,
        **environment(),
    }


def decode_markdown(result: dict[str, Any]) -> str:
    """The rows as a table."""
    ours = {
        (r["model"], r["batch"]): Timing.of_row(r, result["repeats"])
        for r in result["rows"]
        if r["way"] == "jaxspec"
    }

    def cells(row):
        mine = ours.get((row["model"], row["batch"]))
        own = Timing.of_row(row, result["repeats"])
        return [
            row["model"],
            row["batch"],
            row["way"],
            f"{1e3 * row['seconds']:.3f}",
            f"{1e3 * row['least_seconds']:.3f} to {1e3 * row['most_seconds']:.3f}",
            f"{1e3 * row['bound_seconds']:.3f}",
            shown(row, "achieved", "%"),
            shown(ratio_fields(time=(own, mine)), "time") if mine else "",
        ]

    words = (
        "A step yields a token for every image of a batch; both guidance streams. "
        "Milliseconds are medians of whole loops over all tokens, divided by their "
        'number; "model alone" leaves out noise and sampling. Beside it: '
        f"{result['peers']}."
    )
    names = ["model", "batch", "way", "ms a step", "least to most", "bound ms"]
    columns = [*names, "achieved", "of jaxspec's time"]
    return heading("Plain decoding", result, words) + table(
        columns, [cells(r) for r in result["rows"]]
    )


def decode_plot(result: dict[str, Any]) -> np.ndarray:
    """Share of the bound over the batch, a panel for each model."""
    panels, rows = [], result["rows"]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        lines = []
        for way in dict.fromkeys(row["way"] for row in own):
            points = [row for row in own if row["way"] == way]
            x = [p["batch"] for p in points]
            y = [plotted(p, "achieved") for p in points]
            lines.append(Line(way, x, y))
        panels.append(Panel(model, lines))
    return plot_panels(panels, "batch", "bound / time")
