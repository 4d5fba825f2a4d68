"""Greedy text generation with `transformers` and with jaxspec, on the same weights.

Weights are random. The assistant is an early exit: the first layers of the target, with
its embedding, final norm and head. The remaining layers of the target are scaled down,
so that the two often agree. The block drafter agrees with the target only by chance;
its rows show the cost of a round.
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

from jaxspec.convert.conversion import convert
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import environment, markdown_table
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.timing import RATIO_NOTE, ratio_fields, shown
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.tree import Tree

PLAIN = "transformers, plain"
PROMPT = 16  # tokens of the prompt
DRAFTED = 4  # drafted tokens per round
WEIGHT_STD = 0.05  # standard deviation of weight matrices
RESIDUAL_SCALE = 0.05  # scale of the outputs of layers after the early exit

# Generated tokens, and the number of target calls.
Generation = tuple[np.ndarray, int]
Method = Callable[[], Generation]


@dataclass(frozen=True)
class Models:
    """Target and drafters in PyTorch.

    Attributes:
      target: Target, a `Qwen3ForCausalLM`.
      assistant: Draft model, a copy of the target's first layers.
      block: DFlash drafter.
    """

    target: Any
    assistant: Any
    block: Any


def make_models(
    *, layers: int, width: int, heads: int, vocab: int, length: int
) -> Models:
    """Makes models with random weights.

    Args:
      layers: Number of layers of the target; drafters have a quarter of them.
      width: Model width of all models.
      heads: Number of query heads of all models, and of key/value heads.
      vocab: Vocabulary size; the last token is also the block drafter's mask token.
      length: Maximum sequence length.

    Raises:
      ConfigError: The sizes are impossible, or `transformers` has no DFlash.
    """
    if not hasattr(transformers, "MuseGlimmerAssistantModel"):
        raise ConfigError(
            f"transformers {transformers.__version__} has no DFlash; install 5.23"
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
        initializer_range=WEIGHT_STD,
    )
    config = transformers.Qwen3Config(
        vocab_size=vocab, num_hidden_layers=layers, **sizes
    )
    target = _frozen(transformers.Qwen3ForCausalLM(config))
    for layer in target.model.layers[first:]:
        layer.self_attn.o_proj.weight.mul_(RESIDUAL_SCALE)
        layer.mlp.down_proj.weight.mul_(RESIDUAL_SCALE)
    config = transformers.Qwen3Config(
        vocab_size=vocab, num_hidden_layers=first, **sizes
    )
    assistant = _frozen(transformers.Qwen3ForCausalLM(config))
    names = assistant.state_dict().keys()
    assistant.load_state_dict(
        {name: x for name, x in target.state_dict().items() if name in names}
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


def convert_models(
    models: Models, folder: Path
) -> tuple[Bundle, dict[str, LoadedDrafter]]:
    """Converts the models with the library's converter.

    Args:
      models: Models on the CPU.
      folder: Empty folder for intermediate files.

    Returns:
      Bundle with the target as its prior, and drafters by name.
    """
    source, output = folder / "source", folder / "output"
    # Parameter names of DFlash releases, which the converter reads.
    released = {"encoder.fc.": "fc.", "encoder.output_norm_enc.": "hidden_norm."}
    for name in ("target", "assistant", "block"):
        model = getattr(models, name)
        model.config.save_pretrained(source / name)
        state = {}
        for key, x in model.state_dict().items():
            for old, new in released.items():
                key = key.replace(old, new)
            state[key] = x.contiguous()
        save_file(state, source / name / "model.safetensors")
    convert(source / "target", output)
    feature_layers = models.block.config.target_layer_ids
    convert(
        source / "block",
        output,
        family="dflash",
        given={"feature_layers": tuple(feature_layers)},
    )
    convert(source / "assistant", folder / "draft_model")
    bundle = load_bundle(output)
    draft_model = load_drafter(str(folder / "draft_model" / "prior"), bundle)
    return bundle, {
        "draft model": draft_model,
        "block diffusion": load_drafter("own", bundle),
    }


def transformers_methods(
    models: Models, prompt: np.ndarray, tokens: int, device: str = "cpu"
) -> dict[str, Method]:
    """Programs that generate with `transformers`, by name.

    Args:
      models: Models, which are moved to the device.
      prompt: Prompt tokens, int [1, P].
      tokens: Number of generated tokens.
      device: PyTorch device.
    """
    for model in (models.target, models.assistant, models.block):
        model.to(device)
    inputs = torch.from_numpy(np.asarray(prompt, np.int64)).to(device)
    calls = []
    models.target.register_forward_hook(lambda *_: calls.append(1))

    def generate_text(**options: Any) -> Generation:
        calls.clear()
        outputs = models.target.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=tokens,
            **options,
        )
        return outputs[0, inputs.shape[1] :].cpu().numpy(), len(calls)

    return {
        PLAIN: generate_text,
        "transformers, assisted": partial(
            generate_text, assistant_model=models.assistant
        ),
        "transformers, DFlash": partial(
            generate_text, assistant_model=models.block, speculation_type="dflash"
        ),
    }


def jaxspec_methods(
    bundle: Bundle,
    loaded_drafters: dict[str, LoadedDrafter],
    prompt: np.ndarray,
    tokens: int,
) -> dict[str, Method]:
    """Programs that generate with jaxspec, by name.

    Args:
      bundle: Bundle of `convert_models`.
      loaded_drafters: Drafters of `convert_models`.
      prompt: Prompt tokens, int [1, P].
      tokens: Number of generated tokens.
    """
    model, params = Transformer(bundle.prior.config), bundle.prior.params
    inputs = jnp.asarray(prompt, jnp.int32)

    def compile_method(loaded: LoadedDrafter | None) -> Method:
        engine = Engine(
            model.as_target(cfg=False),
            tokens,
            loaded.drafter if loaded else None,
            Tree.named(f"chain-{DRAFTED}") if loaded else Tree.root(),
            order=("temperature",),
        )
        program = jax.jit(engine.generate)
        sampling, keys = Sampling.create(1, temperature=0.0), batch_keys(0, 1)

        def generate_text() -> Generation:
            drafter_params = loaded.params if loaded else None
            result = program(
                Variables(params, drafter_params), inputs, sampling=sampling, keys=keys
            )
            result = jax.device_get(result)
            return result.tokens[0], int(result.stats.calls[0])

        return generate_text

    return {"jaxspec, plain": compile_method(None)} | {
        f"jaxspec, {name}": compile_method(loaded)
        for name, loaded in loaded_drafters.items()
    }


def measure_text(
    *, layers: int, width: int, heads: int, vocab: int, tokens: int, repeats: int
) -> dict[str, Any]:
    """Times every method of generating the same greedy text, batch 1, float32.

    Args:
      layers: Number of layers of the target, at least 2.
      width: Model width of the target.
      heads: Number of heads of the target.
      vocab: Vocabulary size.
      tokens: Number of generated tokens after a prompt of `PROMPT` tokens.
      repeats: Number of timed runs.

    Returns:
      Report with one row per method.

    Raises:
      ConfigError: The sizes are impossible, `transformers` has no DFlash, or PyTorch
        cannot use the device that JAX uses.
    """
    cpu = jax.devices()[0].platform == "cpu"
    if not cpu and not torch.cuda.is_available():
        raise ConfigError(
            "PyTorch cannot use the device that JAX uses; install its CUDA build"
        )
    sizes = {"layers": layers, "width": width, "heads": heads, "vocab": vocab}
    models = make_models(**sizes, length=PROMPT + tokens + DRAFTED + 1)
    prompt = np.random.default_rng(0).integers(0, vocab, (1, PROMPT))
    with TemporaryDirectory() as folder:
        converted = convert_models(models, Path(folder))
        jaxspec_calls = jaxspec_methods(*converted, prompt, tokens)
    device = "cpu" if cpu else "cuda"
    methods = transformers_methods(models, prompt, tokens, device) | jaxspec_calls
    with tqdm(total=(repeats + 2) * len(methods), desc="text", unit="run") as bar:
        generations = {}
        for name, method in methods.items():
            generations[name] = method()
            bar.update()
        timings = time_interleaved(methods, repeats, bar.update)
    reference, plain = generations[PLAIN][0], timings[PLAIN]
    rows = [
        {
            "method": method,
            "tokens": tokens,
            **timing.fields(),
            "tokens_per_call": tokens / generations[method][1],
            "identical": bool(np.array_equal(generations[method][0], reference)),
            **ratio_fields(speedup=(plain, timing)),
        }
        for method, timing in timings.items()
    ]
    result = {**sizes, "repeats": repeats, "rows": rows, **environment()}
    result["torch_threads"] = torch.get_num_threads()
    versions = {x.__name__: str(x.__version__) for x in (torch, transformers)}
    return {**result, "versions": {**result["versions"], **versions}}


def text_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_text`."""

    def cells(row):
        calls = row["tokens"] / row["tokens_per_call"]
        return [
            row["method"],
            row["tokens"],
            f"{row['seconds']:.3f}",
            f"{row['min_seconds']:.3f} to {row['max_seconds']:.3f}",
            f"{row['tokens_per_call']:.2f}",
            f"{1e3 * row['seconds'] / calls:.2f}",
            shown(row, "speedup"),
            "yes" if row["identical"] else "no",
        ]

    versions = result["versions"]
    lines = [
        "# Text generation with transformers and jaxspec",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {versions['jax']}, transformers "
        f"{versions['transformers']}, torch {versions['torch']} "
        f"({result['torch_threads']} threads), float32. Medians of "
        f"{result['repeats']} interleaved runs, without compilation.",
        "",
        f"Target: Qwen3 architecture with random weights, {result['layers']} layers, "
        f"width {result['width']}, {result['heads']} heads, vocabulary "
        f"{result['vocab']}. Greedy text after a prompt of {PROMPT} tokens, one "
        f"sequence, {DRAFTED} drafted tokens per round. The assistant and the draft "
        "model are the first quarter of the target's layers with its head. The block "
        "drafters have random weights and agree with the target only by chance. "
        '"Identical" compares tokens with the first row; "speedup" is relative to '
        f"the first row. {RATIO_NOTE}",
        "",
        "",
    ]
    columns = ["method", "tokens", "seconds", "min to max", "tokens per target call"]
    columns += ["ms per target call", "speedup", "identical"]
    return "\n".join(lines) + markdown_table(
        columns, [cells(r) for r in result["rows"]]
    )
