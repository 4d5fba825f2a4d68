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
from jaxspec.bench.registry import BATCHES, CHECKPOINT, REPEATS, SEED
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.drafters.dflash import DFlash
from jaxspec.drafters.training_free.grid_jacobi import GridJacobi
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
DRAFTED, MIXED = "jaxspec, same drafter and tree", "jaxspec, mixed drafts"


class Made(NamedTuple):
    """Tokens that a method generated.

    Attributes:
      tokens: Tokens of all images, [B, T].
      calls: Number of passes of the target.
      per_call: Tokens of an image per call of the target.
      nodes: Nodes of a pass.
    """

    tokens: np.ndarray
    calls: int
    per_call: float
    nodes: int = 1


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
            nodes = 1 if loaded is None else shape.size
            return Made(out.tokens, int(passes), out.tokens_per_call, nodes)

        return run

    methods = {
        PLAIN: method(Tree.root(), None),
        DRAFTED: method(tree, compared_drafter(bundle)),
    }
    if compared_drafter(bundle) != "own":
        methods[MIXED] = method(best, "own")
    return methods


def compared_drafter(bundle: Bundle) -> str:
    """Name of the drafter that both engines have."""
    return "unmixed" if bundle.drafter else "own"


def torch_methods(
    bundle: Bundle, tree: Tree, batch: int, num: int, seed: int
) -> dict[str, Method]:
    """Programs that generate with PyTorch, by name."""
    from jaxspec.bench.baselines import torch_baselines, torch_device
    from jaxspec.bench.baselines.torch_decoder import TorchDecoder
    from jaxspec.bench.baselines.torch_dflash import TorchDFlash
    from jaxspec.bench.baselines.torch_grid_jacobi import TorchGridJacobi
    from jaxspec.bench.baselines.torch_speculative import TorchSpeculative

    config, params = bundle.prior.config, bundle.prior.params
    length = config.sequence_length
    device = torch_device()
    if device is None:
        raise ConfigError(
            "PyTorch cannot use the device of JAX; install a build that can, or set "
            "JAX_PLATFORMS=cpu"
        )
    baselines = torch_baselines(config, params, batch, length, CFG_SCALE)

    def compiled() -> Made:
        rows = [baselines["torch.compile"]() for _ in range(num // batch)]
        return Made(np.concatenate(rows), length * len(rows), 1.0)

    target = TorchDecoder(config, params, 1, 0, device, CFG_SCALE)
    loaded = load_drafter(compared_drafter(bundle), bundle)
    if isinstance(loaded.drafter, DFlash):
        drafter = TorchDFlash(loaded.drafter.config, loaded.params["own"], target)
    elif isinstance(loaded.drafter, GridJacobi):
        drafter = TorchGridJacobi(loaded.drafter, target)
    else:
        raise ConfigError(f"no PyTorch twin of the drafter of '{bundle.name}'")
    loop = TorchSpeculative(target, drafter, tree)
    labels = np.array(spread_classes(len(bundle.class_names), num))
    positions = jnp.tile(1 + jnp.arange(length + tree.depth), (num, 1))
    noise = np.asarray(
        position_noise(batch_keys(seed, num), positions, config.vocab_size)
    )

    def speculative() -> Made:
        starts = range(0, num, batch)
        rounds = [
            loop.generate(labels[i : i + batch], noise[i : i + batch]) for i in starts
        ]
        tokens = np.concatenate([x.tokens for x in rounds])
        calls = np.stack([x.calls for x in rounds])
        passes = int(calls.max(axis=1).sum())
        return Made(tokens, passes, tokens.size / calls.sum(), tree.size)

    return {"PyTorch, torch.compile": compiled, TORCH_LOOP: speculative}


def measure_engines(
    *,
    checkpoint: str | None = None,
    batches: Sequence[int] = (1, 4, 8),
    nodes: Sequence[int] = (5,),
    best: str | None = None,
    num: int = 8,
    repeats: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Times every engine on a class-conditional model, float32.

    Args:
      checkpoint: Bundle folder; None for the embedded bundle of classes.
      batches: Batch sizes in images; each divides `num`.
      nodes: Drafted and verified nodes of the tree, its root included: one number, or
        one for each batch size.
      best: Name of the tree of mixed drafts; None for the same tree.
      num: Number of images.
      repeats: Number of timed runs.
      seed: Seed of images and noise.

    Returns:
      Report with one row per batch size and engine.

    Raises:
      ConfigError: PyTorch is not installed, a batch size does not divide `num`, there
        is not one number of nodes for each, or the loop lacks the drafter.
    """
    if find_spec("torch") is None:
        raise ConfigError("this study needs PyTorch: pip install 'torch==2.13.0'")
    if wrong := [batch for batch in batches if num % batch]:
        raise ConfigError(f"a batch of {wrong[0]} does not divide {num} images")
    if len(nodes) not in (1, len(batches)):
        raise ConfigError(
            f"{len(nodes)} numbers of nodes for {len(batches)} batch sizes; give one, "
            "or one for each"
        )
    bundle = load_bundle(checkpoint or CLASSES)
    loaded = load_drafter("own", bundle)
    each = tuple(nodes) if len(nodes) > 1 else (*nodes,) * len(batches)
    rows = []
    with tqdm(total=len(batches), desc="batch sizes") as bar:
        for batch, size in zip(batches, each, strict=True):
            tree = loaded.tree(f"optimal-{size}")
            assert isinstance(tree, Tree)
            shape = loaded.tree(best) if best else tree
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
                    "nodes": made[name].nodes,
                    "calls": made[name].calls,
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
    result |= {"checkpoint": bundle.name, "best": best}
    result["torch"] = f"{torch.__version__}, {torch.get_num_threads()} threads"
    return result


def _tokens(method: Method) -> np.ndarray:
    """Tokens alone, which `time_interleaved` waits for."""
    return method().tokens


def engines_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_engines`."""
    mixed = ""
    if any(row["engine"] == MIXED for row in result["rows"]):
        mixed = f"Mixed drafts have the tree {result['best'] or 'of the others'}. "
    cells = [
        [
            row["batch"],
            row["engine"],
            row["nodes"],
            row["calls"],
            f"{row['tokens_per_call']:.2f}",
            f"{row['ms_per_call']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['min_seconds']:.2f} to {row['max_seconds']:.2f}",
            shown(row, "speedup"),
            "yes" if row["same_tokens"] else "no",
        ]
        for row in result["rows"]
    ]
    columns = ["batch", "engine", "nodes", "calls", "tokens per call", "ms per call"]
    columns += ["seconds", "min to max", "speedup", "same tokens"]
    lines = [
        "# Engines on equal models",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}, torch "
        f"{result['torch']}, float32. Medians of {result['repeats']} interleaved runs, "
        "without compilation.",
        "",
        f"{result['num']} images of `{result['checkpoint']}`, CFG scale "
        f'{CFG_SCALE:g}, temperature 1. "{TORCH_LOOP}" is eager PyTorch with a Python '
        "loop over rounds, here of a batch. It has the drafter, the tree and the "
        "random numbers of the drafted row of jaxspec, so that engines are compared "
        "and not models; trees are optimal for the measured acceptance. The loop does "
        "not score near-ties again, as jaxspec does, which can change a call, and its "
        f"noise is made before the timed run. {mixed}A call of a batch "
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
        CHECKPOINT,
        replace(BATCHES, default=(1, 4, 8)),
        Option(
            "nodes",
            "nodes of the tree, its root included: one number, or one for each batch",
            int,
            default=(5,),
            several=True,
            least=2,
        ),
        Option("best", "tree of mixed drafts", metavar="TREE", default_text="the same"),
        Option("num", "number of images", int, default=8, least=1),
        REPEATS,
        SEED,
    ),
    measure=measure_engines,
    markdown=engines_markdown,
    identity=("batch", "engine", "nodes"),
    program="python -m docs.studies.engines",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
