"""Next-scale models in jaxspec and in PyTorch, in one run."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from docs.studies.command import run_study
from jaxspec.bench.baselines import torch_description
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.registry import REPEATS, SEED
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.models.next_scale.model import NextScale
from jaxspec.models.next_scale.presets import preset
from jaxspec.next_scale import NextScaleVariables, ScaleSampling, one_model
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.timing import ratio_fields, shown
from jaxspec.tokenizers.multi_scale.model import PRESETS
from jaxspec.tokenizers.multi_scale.scales import QUANTIZER, Scales, shared_convs
from jaxspec.typing import Params

PLAIN, CFG_SCALE = "jaxspec", 2.0
ENGINES = PLAIN, "torch-eager", "torch-compile"


def models_of(name: str) -> tuple[NextScale, Params, Scales, Params]:
    """A model, its functions between maps and features, and parameters of both.

    Args:
      name: Bundle folder, or a published size, which gets random weights.

    Raises:
      ConfigError: The bundle has another kind of model.
    """
    if not name.startswith("var-"):
        bundle = load_bundle(name)
        if bundle.family != "next_scale":
            raise ConfigError(f"'{name}' has no next-scale model")
        tokenizer = bundle.tokenizer
        quantizer = {k: tokenizer.params[k] for k in QUANTIZER}
        return (
            bundle.prior.model,
            bundle.prior.params,
            tokenizer.model.scales,
            quantizer,
        )
    model = NextScale(preset(name))
    config, keys = model.config, jax.random.split(jax.random.key(0), 3)
    share = PRESETS["var-256"].residual_share
    scales = Scales(config.scales, shared_convs(len(config.scales), 4), share)
    params = dict(jax.jit(model.init)(keys[0]))
    shape = config.width, config.vocab_size
    kernel = 0.02 * jax.random.normal(keys[1], shape, jnp.float32)
    params["logits"] = {**params["logits"], "kernel": kernel}
    quantizer = jax.jit(scales.init, static_argnums=(1, 2))(
        keys[2], config.vocab_size, config.code_dim
    )
    return model, params, scales, quantizer


def engines_of(
    name: str, batch: int, seed: int, engines: Sequence[str] = ENGINES
) -> dict[str, Callable[[], np.ndarray]]:
    """Functions that generate the same images, by engine; they return tokens.

    Args:
      name: Model, see `models_of`.
      batch: Number of images.
      seed: Seed of their noise.
      engines: Engines.
    """
    model, params, scales, quantizer = models_of(name)
    config = model.config
    sampling = ScaleSampling(len(scales), order=("temperature",))
    generator = one_model(model, scales, sampling=sampling)
    variables = NextScaleVariables((params,), quantizer)
    classes = np.arange(batch) % config.classes
    keys = batch_keys(seed, batch)
    run = jax.jit(partial(generator.generate, variables))
    settings = Sampling.create(cfg_scale=CFG_SCALE)

    def ours() -> np.ndarray:
        out = run(jnp.asarray(classes, jnp.int32), sampling=settings, keys=keys)
        return np.asarray(out.tokens)

    found: dict[str, Callable[[], np.ndarray]] = {PLAIN: ours}
    if find_spec("torch") is None or len(engines) == 1:
        return found
    import torch  # pyright: ignore[reportMissingImports]

    from jaxspec.bench.baselines.torch_next_scale import TorchNextScale, torch_maps

    positions = jnp.arange(config.sequence_length, dtype=jnp.int32)
    positions = jnp.broadcast_to(positions, (batch, config.sequence_length))
    noise = np.asarray(position_noise(keys, positions, config.vocab_size))
    torch._dynamo.reset()
    twin = TorchNextScale(config, params, scales, quantizer, batch, CFG_SCALE)
    step = torch.compile(twin, dynamic=False)
    found["torch-eager"] = lambda: torch_maps(twin, twin, classes, noise)
    found["torch-compile"] = lambda: torch_maps(twin, step, classes, noise)
    return {name: call for name, call in found.items() if name in engines}


def measure_engines(
    *,
    models: Sequence[str] = ("var-d16",),
    batches: Sequence[int] = (1,),
    engines: Sequence[str] = ENGINES,
    repeats: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Times every engine, float32, on this machine's CPU.

    Args:
      models: Bundle folders, or published sizes with random weights.
      batches: Batch sizes in images.
      engines: Engines.
      repeats: Number of timed runs.
      seed: Seed of the noise.

    Returns:
      Report with one row for each model, batch size and engine.

    Raises:
      ConfigError: A model is no next-scale model, or jaxspec is not among the engines.
    """
    if PLAIN not in engines:
        raise ConfigError(f"others are compared with jaxspec: add --engines {PLAIN}")
    rows = []
    cases = [(name, batch) for name in models for batch in batches]
    for name, batch in tqdm(cases, desc="models"):
        calls = engines_of(name, batch, seed, engines)
        tokens = {engine: call() for engine, call in calls.items()}
        timings = time_interleaved(calls, repeats, warm_up=False)
        for engine, timing in timings.items():
            same = float(np.mean(tokens[engine] == tokens[PLAIN]))
            fields = {**timing.per(batch).fields(), "same_tokens": same}
            fields |= ratio_fields(speedup=(timing, timings[PLAIN]))
            rows.append({"model": name, "batch": batch, "engine": engine, **fields})
    return {
        "dtype": "float32",
        "repeats": repeats,
        "rows": rows,
        "ceilings": measure_ceilings("float32").fields(),
        "torch": torch_description(),
        **environment(),
    }


def engines_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_engines`."""
    cells = [
        [
            row["model"],
            row["batch"],
            row["engine"],
            f"{1e3 * row['seconds']:.0f}",
            f"{1e3 * row['min_seconds']:.0f} to {1e3 * row['max_seconds']:.0f}",
            shown(row, "speedup"),
            f"{100 * row['same_tokens']:.1f} %",
        ]
        for row in result["rows"]
    ]
    columns = ["model", "batch", "engine", "ms an image", "min to max"]
    columns += ["time over that of jaxspec", "tokens as jaxspec"]
    description = (
        f"Plain generation with classifier-free guidance, {result['torch']}. All "
        "engines keep keys and values, have the same weights and the same noise, and "
        "were timed alternately. Published sizes have random weights."
    )
    return report_heading(
        "Next-scale models in jaxspec and in PyTorch", result, description
    ) + markdown_table(columns, cells)


STUDY = Benchmark(
    "next-scale-torch",
    summary="next-scale models in jaxspec and in PyTorch",
    description="Generates images with next-scale models in jaxspec and in PyTorch, "
    "eager and compiled, with equal weights and noise. Needs torch.",
    example="Example: python -m docs.studies.next_scale_torch --models var-d16 "
    "--out docs/reports/next_scale_torch_cpu",
    options=(
        Option(
            "models",
            "bundle folders, or published sizes with random weights",
            default=("var-d16",),
            several=True,
            metavar="NAME",
        ),
        Option(
            "batches", "batch sizes in images", int, default=(1,), several=True, least=1
        ),
        Option(
            "engines",
            "engines",
            default=ENGINES,
            several=True,
            metavar="NAME",
            default_text="all",
        ),
        REPEATS,
        SEED,
    ),
    measure=measure_engines,
    markdown=engines_markdown,
    identity=("model", "batch", "engine"),
    program="python -m docs.studies.next_scale_torch",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
