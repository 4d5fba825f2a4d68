"""Greedy text by `transformers` and by our loop: the same weights, timed in turn.

Weights are random. The assistant is an early exit: the target's first layers with its
embedding, final norm and head. Later layers add little, so the two agree sometimes. The
block drafter agrees by chance alone, so its rows show what a round costs.
"""

# pyright: reportMissingImports=false
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tqdm import tqdm

from jaxspec.bench.tables import environment, table
from jaxspec.bench.timing import time_interleaved
from jaxspec.bundle import Bundle, load_bundle
from jaxspec.convert.run import convert
from jaxspec.errors import ConfigError
from jaxspec.helpers import LoadedDrafter, bundled_drafter, load_drafter
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.spec.loop import generate
from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import make_sampling
from jaxspec.spec.state import Engine
from jaxspec.spec.tree import Tree
from jaxspec.timing import RATIO_NOTE, ratio_fields, shown

KEYS = ("method",)
PLAIN = "transformers, plain"
PROMPT = 16  # tokens
DRAFTED = 4  # tokens a round
SPREAD = 0.05  # standard deviation of all matrices
LATER = 0.05  # scale of what layers behind the assistant's add

# A generation: its tokens, and how often it called the target.
Made = tuple[np.ndarray, int]
Method = Callable[[], Made]


@dataclass(frozen=True)
class Models:
    """A target and its drafters, in PyTorch.

    Attributes:
      target: a `Qwen3ForCausalLM`.
      assistant: its first layers, with weights of its own that are equal.
      block: a DFlash drafter.
    """

    target: Any
    assistant: Any
    block: Any


def make_models(
    *, layers: int, width: int, heads: int, vocab: int, length: int
) -> Models:
    """Random models.

    Args:
      layers: of the target; its drafters have a quarter of them.
      width: of all.
      heads: of all; queries have as many as keys.
      vocab: number of tokens; the last is also the block drafter's mask.
      length: longest sequence.

    Raises:
      ConfigError: there are no such models, or this `transformers` lacks one.
    """
    if not hasattr(transformers, "MuseGlimmerAssistantModel"):
        raise ConfigError(
            f"transformers {transformers.__version__} has no DFlash; 5.23 does"
        )
    if layers < 2:
        raise ConfigError(f"layers={layers}: an early exit needs at least 2")
    if width % (2 * heads):
        raise ConfigError(
            f"width {width} must be a multiple of twice the heads, {2 * heads}"
        )
    torch.manual_seed(0)
    first = max(1, layers // 4)
    sizes = dict(
        hidden_size=width,
        intermediate_size=3 * width,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=length,
        initializer_range=SPREAD,
    )
    config = transformers.Qwen3Config(
        vocab_size=vocab, num_hidden_layers=layers, **sizes
    )
    target = _frozen(transformers.Qwen3ForCausalLM(config))
    for layer in target.model.layers[first:]:
        layer.self_attn.o_proj.weight.mul_(LATER)
        layer.mlp.down_proj.weight.mul_(LATER)
    config = transformers.Qwen3Config(
        vocab_size=vocab, num_hidden_layers=first, **sizes
    )
    assistant = _frozen(transformers.Qwen3ForCausalLM(config))
    known = assistant.state_dict()
    assistant.load_state_dict(
        {name: x for name, x in target.state_dict().items() if name in known}
    )
    settings = assistant.generation_config
    settings.num_assistant_tokens = DRAFTED
    settings.num_assistant_tokens_schedule = "constant"
    settings.assistant_confidence_threshold = 0
    block = transformers.MuseGlimmerAssistantConfig(
        num_hidden_layers=first,
        layer_types=["full_attention"] * first,
        rope_parameters=copy.deepcopy(config.rope_parameters),
        rms_norm_eps=config.rms_norm_eps,
        block_size=DRAFTED + 1,
        mask_token_id=vocab - 1,
        target_layer_ids=sorted({0, (layers - 1) // 2, layers - 2}),
        **sizes,
    )
    return Models(
        target, assistant, _frozen(transformers.MuseGlimmerAssistantModel(block))
    )


def _frozen(model: Any) -> Any:
    return model.eval().requires_grad_(False)


def converted(models: Models, folder: Path) -> tuple[Bundle, dict[str, LoadedDrafter]]:
    """Our form of the models, through the library's converter.

    Args:
      models: on the CPU.
      folder: empty, for files on the method.

    Returns:
      A bundle with the target as its prior, and its drafters by name.
    """
    theirs, ours = folder / "theirs", folder / "ours"
    released = {"encoder.fc.": "fc.", "encoder.output_norm_enc.": "hidden_norm."}
    for name in ("target", "assistant", "block"):
        model = getattr(models, name)
        model.config.save_pretrained(theirs / name)
        state = {}
        for key, x in model.state_dict().items():
            for old, new in released.items():
                key = key.replace(old, new)
            state[key] = x.contiguous()
        save_file(state, theirs / name / "model.safetensors")
    convert(theirs / "target", ours)
    feature_layers = models.block.config.target_layer_ids
    convert(
        theirs / "block",
        ours,
        family="dflash",
        given={"feature_layers": tuple(feature_layers)},
    )
    convert(theirs / "assistant", folder / "small")
    bundle = load_bundle(ours)
    small = load_drafter(str(folder / "small" / "prior"), bundle)
    return bundle, {"small model": small, "block diffusion": bundled_drafter(bundle)}


def transformers_methods(
    models: Models, prompt: np.ndarray, tokens: int, device: str = "cpu"
) -> dict[str, Method]:
    """Generations by `transformers`.

    Args:
      models: see `make_models`; they are moved to the device.
      prompt: int [1, P].
      tokens: to generate.
      device: of PyTorch.
    """
    for model in (models.target, models.assistant, models.block):
        model.to(device)
    given = torch.from_numpy(np.asarray(prompt, np.int64)).to(device)
    calls = []
    models.target.register_forward_hook(lambda *_: calls.append(1))

    def made(**options: Any) -> Made:
        calls.clear()
        found = models.target.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=tokens,
            **options,
        )
        return found[0, given.shape[1] :].cpu().numpy(), len(calls)

    dflash = partial(made, assistant_model=models.block, speculation_type="dflash")
    return {
        PLAIN: made,
        "transformers, assisted": partial(made, assistant_model=models.assistant),
        "transformers, DFlash": dflash,
    }


def jaxspec_methods(
    bundle: Bundle,
    loaded_drafters: dict[str, LoadedDrafter],
    prompt: np.ndarray,
    tokens: int,
) -> dict[str, Method]:
    """Our generations; arguments as in `transformers_methods`."""
    model, params = Transformer(bundle.prior.config), bundle.prior.params
    given = jnp.asarray(prompt, jnp.int32)

    def method(loaded: LoadedDrafter | None) -> Method:
        engine = Engine(
            make_target(
                model,
                guided=False,
                feature_layers=loaded.feature_layers if loaded else (),
            ),
            tokens,
            loaded.drafter if loaded else None,
            named_tree(f"chain-{DRAFTED}") if loaded else Tree.root(),
            order=("temperature",),
        )
        program = jax.jit(partial(generate, engine))
        sampling, keys = make_sampling(1, temperature=0.0), batch_keys(0, 1)

        def made() -> Made:
            drafter_params = loaded.params if loaded else None
            found = program(params, drafter_params, given, sampling, keys)
            found = jax.device_get(found)
            return found.tokens[0], int(found.stats.calls[0])

        return made

    methods = {"jaxspec, plain": method(None)}
    return methods | {
        f"jaxspec, {name}": method(loaded) for name, loaded in loaded_drafters.items()
    }


def bench_text(
    *, layers: int, width: int, heads: int, vocab: int, tokens: int, repeats: int
) -> dict[str, Any]:
    """One row for each method to the same greedy text, batch 1, float32.

    Args:
      layers: of the target, at least 2.
      width: of the target.
      heads: of the target.
      vocab: number of tokens.
      tokens: to generate behind a prompt of `PROMPT`.
      repeats: timed runs.

    Raises:
      ConfigError: see `make_models`; or PyTorch cannot use the device that JAX uses.
    """
    cpu = jax.devices()[0].platform == "cpu"
    if not cpu and not torch.cuda.is_available():
        raise ConfigError("PyTorch cannot use the device that JAX uses")
    sizes = {"layers": layers, "width": width, "heads": heads, "vocab": vocab}
    models = make_models(**sizes, length=PROMPT + tokens + DRAFTED + 1)
    prompt = np.random.default_rng(0).integers(0, vocab, (1, PROMPT))
    with TemporaryDirectory() as folder:
        ours = jaxspec_methods(*converted(models, Path(folder)), prompt, tokens)
    theirs = transformers_methods(models, prompt, tokens, "cpu" if cpu else "cuda")
    methods = {**theirs, **ours}
    with tqdm(total=(repeats + 2) * len(methods), desc="text", unit="run") as bar:
        found = {}
        for name, method in methods.items():
            found[name] = method()
            bar.update()
        timings = time_interleaved(methods, repeats, bar.update)
    wanted, plain = found[PLAIN][0], timings[PLAIN]
    rows = [
        {
            "method": method,
            "tokens": tokens,
            **timing.fields(),
            "tokens_per_call": tokens / found[method][1],
            "identical": bool(np.array_equal(found[method][0], wanted)),
            **ratio_fields(of_plain=(plain, timing)),
        }
        for method, timing in timings.items()
    ]
    result = {**sizes, "repeats": repeats, "rows": rows, **environment()}
    result["torch_threads"] = torch.get_num_threads()
    versions = {x.__name__: str(x.__version__) for x in (torch, transformers)}
    return {**result, "versions": {**result["versions"], **versions}}


def text_markdown(result: dict[str, Any]) -> str:
    """The rows as a table."""

    def cells(row):
        calls = row["tokens"] / row["tokens_per_call"]
        return [
            row["method"],
            row["tokens"],
            f"{row['seconds']:.3f}",
            f"{row['min_seconds']:.3f} to {row['max_seconds']:.3f}",
            f"{row['tokens_per_call']:.2f}",
            f"{1e3 * row['seconds'] / calls:.2f}",
            shown(row, "of_plain"),
            "yes" if row["identical"] else "no",
        ]

    versions = result["versions"]
    lines = [
        "# Text beside transformers",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {versions['jax']}, transformers "
        f"{versions['transformers']}, torch {versions['torch']} "
        f"({result['torch_threads']} threads), float32. Medians of "
        f"{result['repeats']} runs in turn, without compilation.",
        "",
        f"A target in Qwen3's form with random weights: {result['layers']} layers, "
        f"width {result['width']}, {result['heads']} heads, {result['vocab']} tokens. "
        f"Greedy text behind {PROMPT} tokens, one sequence, {DRAFTED} drafted tokens a "
        "round. The assistant and the small model are the target's first quarter with "
        "its head; block drafters are DFlash's, random, and agree by chance alone. "
        '"Identical" compares tokens with the first row; "of plain" is its time '
        f"over a method's. {RATIO_NOTE}",
        "",
        "",
    ]
    columns = ["method", "tokens", "seconds", "least to most", "tokens a target call"]
    columns += ["ms a target call", "of plain", "identical"]
    return "\n".join(lines) + table(columns, [cells(r) for r in result["rows"]])
