"""Engines compared on equal models: jaxspec, PyTorch compiled, and a PyTorch loop.

Needs PyTorch: `pip install -e '.[parity]'`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from docs.studies.command import run_study
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.registry import BATCHES, REPEATS, SEED
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.drafters.dflash import DFlash
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import environment, markdown_table
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.embedded import CLASSES
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.prompts import Prompts, spread_classes
from jaxspec.pipeline.timing import RATIO_NOTE, ratio_fields, shown
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree

CFG_SCALE = 2.0
PLAIN, TORCH_LOOP = "jaxspec, plain", "PyTorch, loop after LANTERN's"
DRAFTED = "jaxspec, same drafter and tree"


class Made(NamedTuple):
    """Tokens that a method generated.

    Attributes:
      tokens: Tokens of all images, [B, T].
      calls: Number of passes of the target.
      per_call: Tokens of an image per call of the target.
    """

    tokens: np.ndarray
    calls: int
    per_call: float


Method = Callable[[], Made]
AnyTree = Tree | DynamicTree


def jaxspec_methods(
    bundle: Bundle, tree: Tree, best: AnyTree, batch: int, num: int, seed: int
) -> dict[str, Method]:
    """Programs that generate with jaxspec, by name."""
    prompts = Prompts.from_classes(spread_classes(len(bundle.class_names), num))
    config = GenerationConfig(seed=seed, cfg_scale=CFG_SCALE, batch_size=batch)
    programs: dict[Any, Any] = {}

    def method(shape: AnyTree, drafter: str | None) -> Method:
        loaded = load_drafter(drafter, bundle) if drafter else None

        def run() -> Made:
            out = generate(
                bundle, prompts, config, shape, loaded=loaded, programs=programs
            )
            passes = out.calls.reshape(-1, batch).max(axis=1).sum()
            return Made(out.tokens, int(passes), out.tokens_per_call)

        return run

    return {
        PLAIN: method(Tree.root(), None),
        DRAFTED: method(tree, "unmixed"),
        "jaxspec, mixed drafts": method(best, "own"),
    }


def torch_methods(
    bundle: Bundle, tree: Tree, batch: int, num: int, seed: int
) -> dict[str, Method]:
    """Programs that generate with PyTorch, by name."""
    from jaxspec.bench.baselines import torch_baselines
    from jaxspec.bench.baselines.torch_speculative import TorchSpeculative

    config, params = bundle.prior.config, bundle.prior.params
    length = config.sequence_length
    baselines = torch_baselines(config, params, batch, length)

    def compiled() -> Made:
        rows = [baselines["torch.compile"]() for _ in range(num // batch)]
        return Made(np.concatenate(rows), length * len(rows), 1.0)

    methods: dict[str, Method] = {"PyTorch, torch.compile": compiled}
    if batch > 1:
        return methods  # the loop has one sequence
    loaded = load_drafter("unmixed", bundle)
    assert isinstance(loaded.drafter, DFlash)  # that of the embedded bundle
    drafter = loaded.drafter.config, loaded.params["own"]
    loop = TorchSpeculative(config, params, *drafter, tree, CFG_SCALE)
    labels = spread_classes(len(bundle.class_names), num)
    positions = 1 + jnp.arange(length + tree.depth)
    noise = [
        np.asarray(position_noise(key[None], positions[None], config.vocab_size)[0])
        for key in batch_keys(seed, num)
    ]

    def speculative() -> Made:
        rounds = [loop.generate(*pair) for pair in zip(labels, noise, strict=True)]
        calls = sum(x.calls for x in rounds)
        tokens = np.stack([x.tokens for x in rounds])
        return Made(tokens, calls, tokens.size / calls)

    return methods | {TORCH_LOOP: speculative}


def measure_engines(
    *,
    batches: Sequence[int] = (1, 4, 8),
    nodes: int = 5,
    best: str | None = None,
    num: int = 8,
    repeats: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Times every engine on the embedded class-conditional model, float32.

    Args:
      batches: Batch sizes in images; each divides `num`.
      nodes: Drafted and verified nodes of the tree, its root included.
      best: Name of the tree of mixed drafts; None for the same tree.
      num: Number of images.
      repeats: Number of timed runs.
      seed: Seed of images and noise.

    Returns:
      Report with one row per batch size and engine.

    Raises:
      ConfigError: PyTorch is not installed, or a batch size does not divide `num`.
    """
    if find_spec("torch") is None:
        raise ConfigError("this study needs PyTorch: pip install 'torch==2.13.0'")
    if wrong := [batch for batch in batches if num % batch]:
        raise ConfigError(f"a batch of {wrong[0]} does not divide {num} images")
    bundle = load_bundle(CLASSES)
    loaded = load_drafter("own", bundle)
    tree = loaded.tree(f"optimal-{nodes}")
    assert isinstance(tree, Tree)
    shape = loaded.tree(best) if best else tree
    rows = []
    with tqdm(total=len(batches), desc="batch sizes") as bar:
        for batch in batches:
            methods = jaxspec_methods(bundle, tree, shape, batch, num, seed)
            methods |= torch_methods(bundle, tree, batch, num, seed)
            made = {name: method() for name, method in methods.items()}
            calls = {name: partial(_tokens, method) for name, method in methods.items()}
            timings = time_interleaved(calls, repeats, warm_up=False)
            plain = timings[PLAIN]
            reference = made[PLAIN].tokens
            rows += [
                {
                    "batch": batch,
                    "engine": name,
                    "tokens_per_call": made[name].per_call,
                    "ms_per_call": 1e3 * timing.median / made[name].calls,
                    "same_tokens": bool(np.array_equal(made[name].tokens, reference)),
                    **timing.fields(),
                    **ratio_fields(speedup=(plain, timing)),
                }
                for name, timing in timings.items()
            ]
            bar.update()
    import torch  # pyright: ignore[reportMissingImports]

    result = {"repeats": repeats, "num": num, "rows": rows, **environment()}
    result |= {"nodes": tree.size, "best": best or f"optimal-{nodes}"}
    result["torch"] = f"{torch.__version__}, {torch.get_num_threads()} threads"
    return result


def _tokens(method: Method) -> np.ndarray:
    """Tokens alone, which `time_interleaved` waits for."""
    return method().tokens


def engines_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_engines`."""
    cells = [
        [
            row["batch"],
            row["engine"],
            f"{row['tokens_per_call']:.2f}",
            f"{row['ms_per_call']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['min_seconds']:.2f} to {row['max_seconds']:.2f}",
            shown(row, "speedup"),
            "yes" if row["same_tokens"] else "no",
        ]
        for row in result["rows"]
    ]
    columns = ["batch", "engine", "tokens per call", "ms per call", "seconds"]
    columns += ["min to max", "speedup", "same tokens"]
    lines = [
        "# Engines on equal models",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}, torch "
        f"{result['torch']}, float32. Medians of {result['repeats']} interleaved runs, "
        "without compilation.",
        "",
        f"{result['num']} images of 256 tokens of the embedded class-conditional "
        f'model, CFG scale {CFG_SCALE:g}, temperature 1. "{TORCH_LOOP}" is eager '
        "PyTorch with a Python loop over rounds, of one image at a time. It has the "
        "drafter, the tree and the random numbers of the drafted row of jaxspec, so "
        f"that engines are compared and not models: {result['nodes']} nodes, optimal "
        "for the measured acceptance. Mixed drafts have the tree "
        f"{result['best']}. A call of a batch "
        'is a call for all of its images. "Speedup" and "same tokens" are relative '
        "to plain decoding of jaxspec; torch.compile draws noise of its own. "
        f"{RATIO_NOTE}",
        "",
        markdown_table(columns, cells),
    ]
    return "\n".join(lines)


STUDY = Benchmark(
    "engines",
    summary="jaxspec and PyTorch on equal models",
    description="Generates images with jaxspec and with PyTorch: plainly, compiled, "
    "and speculatively with the same drafter and tree. Needs torch.",
    example="Example: python -m docs.studies.engines --batches 1 4 8 --out engines",
    options=(
        replace(BATCHES, default=(1, 4, 8)),
        Option("nodes", "nodes of the tree, its root included", int, 5, least=2),
        Option("best", "tree of mixed drafts", metavar="TREE", default_text="the same"),
        Option("num", "number of images", int, default=8, least=1),
        REPEATS,
        SEED,
    ),
    measure=measure_engines,
    markdown=engines_markdown,
    identity=("batch", "engine"),
    program="python -m docs.studies.engines",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
