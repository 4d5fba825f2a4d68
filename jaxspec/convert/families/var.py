"""Next-scale transformers of VAR, of CoDe in the same layout, and of HMAR.

Tensor names: FoundationVision/VAR `models/var.py`, `models/basic_var.py` (arXiv
2404.02905); CoDe's drafters and refiners (arXiv 2411.17787); NVlabs/HMAR
`models/hmar.py` (arXiv 2506.04421).
"""

import math
from functools import partial
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import NextScaleConfig
from jaxspec.convert.family import ComputedParam, Family, Overrides, Plan
from jaxspec.convert.imagenet import imagenet_classes
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors
from jaxspec.convert.transforms import Heads
from jaxspec.errors import ConfigError


def _linear(source: str, target: str) -> tuple[KeyRule, ...]:
    return (
        KeyRule(f"{source}.weight", f"{target}/kernel", "linear"),
        KeyRule(f"{source}.bias", f"{target}/bias"),
    )


def _blocks(source: str, target: str) -> tuple[KeyRule, ...]:
    return (
        KeyRule(
            f"{source}.attn.mat_qkv.weight",
            f"{target}/attention/qkv/kernel",
            "heads_fused",
        ),
        KeyRule(f"{source}.attn.q_bias", f"{target}/attention/q_bias"),
        KeyRule(f"{source}.attn.v_bias", f"{target}/attention/v_bias"),
        *_linear(f"{source}.attn.proj", f"{target}/attention/out"),
        *_linear(f"{source}.ada_lin.1", f"{target}/modulation"),
        *_linear(f"{source}.ffn.fc1", f"{target}/change"),
        *_linear(f"{source}.ffn.fc2", f"{target}/down"),
    )


_COMMON = (
    KeyRule("class_emb.weight", "classes/embedding"),
    KeyRule("lvl_embed.weight", "levels"),
    *_linear("shared_ada_lin.1", "modulation"),
)
RULES = (
    *_COMMON,
    *_linear("word_embed", "vectors_in"),
    *_linear("head_nm.ada_lin.1", "head_modulation"),
    *_linear("head", "logits"),
    *_blocks("blocks.{i}", "blocks_{i}"),
)


def _mask_rules(names: dict[str, str]) -> tuple[KeyRule, ...]:
    """Rules of a model with two stacks of last layers, of which one refines maps."""
    return (
        *_COMMON,
        KeyRule("word_embed.weight", "vectors_in/kernel", "linear"),
        KeyRule("word_embed_bias", "vectors_in/bias"),
        *_linear("ns_head_nm.ada_lin.1", "head_modulation"),
        *_linear("ns_head", "logits"),
        *_linear("mask_head_nm.ada_lin.1", "mask_modulation"),
        *_linear("mask_head", "mask_logits"),
        *(rule for pair in names.items() for rule in _blocks(*pair)),
    )


# Numbers of scales and masks, and a bias of keys that is always 0.
IGNORED = (
    r"lvl_1L",
    r"attn_bias_for_masking",
    r"(base_|ns_|mask_)?blocks\.\d+\.attn\.zero_k_bias",
)
# Samples of the published FID; VAR's own scale of guidance is 1 less than ours.
PUBLISHED = {"generation": {"cfg_scale": 2.5, "top_k": 900, "top_p": 0.96}}
# The same of HMAR, scale of guidance and `top_k` by the number of layers.
PUBLISHED_MASKED = {16: (2.7, 1000), 20: (2.9, 950), 24: (3.1, 900), 30: (2.6, 650)}


def _detect(source: Source) -> bool:
    return {"pos_1LC", "lvl_embed.weight", "word_embed.weight"} <= set(source.tensors)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1)


def _block_names(source: Source) -> dict[str, str]:
    """Names of layers in a file, and in our parameters."""
    count = partial(count_tensors, source)
    if "mask_embed.weight" not in source.tensors:
        layers = count("blocks.{i}.attn.q_bias")
        return {f"blocks.{i}": f"blocks_{i}" for i in range(layers)}
    base = count("base_blocks.{i}.attn.q_bias")
    own, masked = (count(f"{k}_blocks.{{i}}.attn.q_bias") for k in ("ns", "mask"))
    if own != masked:
        raise ConfigError(
            f"'{source.name}' has {own} last layers and {masked} for masked maps; "
            "their numbers must be equal"
        )
    return (
        {f"base_blocks.{i}": f"blocks_{i}" for i in range(base)}
        | {f"ns_blocks.{i}": f"blocks_{base + i}" for i in range(own)}
        | {f"mask_blocks.{i}": f"mask_blocks_{i}" for i in range(masked)}
    )


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    if "mask_embed.weight" in source.tensors and "mask_head.weight" not in (
        source.tensors
    ):
        raise ConfigError(
            f"'{source.name}' has the layers for masked maps alone; convert the file "
            "that holds both passes, with base_blocks, ns_blocks and mask_blocks"
        )
    names = _block_names(source)
    first = next(iter(names), "blocks.0")
    if f"{first}.attn.scale_mul_1H11" not in source.tensors:
        raise ConfigError(
            f"'{source.name}' has no {first}.attn.scale_mul_1H11; models without "
            "normalized queries and keys are not supported"
        )
    classes, width = source.shape("class_emb.weight", 2)
    mask_layers = sum(name.startswith("mask_") for name in names)
    head = "ns_head.weight" if mask_layers else "head.weight"
    vocab_size = source.shape(head, 2)[0]
    shared = "shared_ada_lin.1.weight" in source.tensors
    config = NextScaleConfig(
        vocab_size=vocab_size,
        code_dim=source.shape("word_embed.weight", 2)[1],
        layers=len(names) - mask_layers,
        width=width,
        heads=source.shape(f"{first}.attn.scale_mul_1H11", 4)[1],
        ffn_width=source.shape(f"{first}.ffn.fc1.weight", 2)[0],
        scales=_scales(source),
        classes=classes - 1,
        attends="own" if mask_layers or _is_block_diagonal(source) else "earlier",
        mask_layers=mask_layers,
        shared_modulation=shared,
    )
    computed = {
        "start": ComputedParam(("pos_start",), _flat),
        "positions": ComputedParam(("pos_1LC",), lambda x: x[0]),
    }
    if mask_layers:
        computed["mask"] = ComputedParam(("mask_embed.weight",), _flat)
    for name, path in names.items():
        factors = ComputedParam((f"{name}.attn.scale_mul_1H11",), _flat)
        computed[f"{path}/attention/log_scale"] = factors
        if shared:
            offset = ComputedParam((f"{name}.ada_gss",), _flat)
            computed[f"{path}/modulation"] = offset
    settings: dict[str, Any] = {} if config.attends == "own" else dict(PUBLISHED)
    if mask_layers and config.layers in PUBLISHED_MASKED:
        scale, top_k = PUBLISHED_MASKED[config.layers]
        settings["generation"] = {"cfg_scale": scale, "top_k": top_k, "top_p": 0.99}
    if config.classes == 1000:
        settings["class_names"] = imagenet_classes()
    heads = Heads(config.head_size, config.heads, config.heads)
    return Plan(
        "next_scale",
        config,
        _mask_rules(names) if mask_layers else RULES,
        heads,
        computed=computed,
        ignored=IGNORED,
        metadata=settings,
    )


def _is_block_diagonal(source: Source) -> bool:
    """Whether a file's mask hides earlier maps, as that of HMAR's first stage does."""
    if "attn_bias_for_masking" not in source.tensors:
        return False
    mask = np.asarray(source.tensors["attn_bias_for_masking"].read())
    return bool(np.isneginf(mask.reshape(mask.shape[-2:])[1, 0]))


def _scales(source: Source) -> tuple[int, ...]:
    """Sides of the token maps, from the table of levels of all positions.

    Raises:
      ConfigError: there is no such table, or its levels are no squares.
    """
    if "lvl_1L" not in source.tensors:
        raise ConfigError(f"'{source.name}' has no lvl_1L, the table of its scales")
    counts = np.bincount(np.asarray(source.tensors["lvl_1L"].read()).reshape(-1))
    sides = tuple(math.isqrt(int(n)) for n in counts)
    if any(s * s != n for s, n in zip(sides, counts, strict=True)):
        raise ConfigError(
            f"'{source.name}' has levels of {counts.tolist()} tokens, no squares"
        )
    return sides


FAMILIES = (Family("var", _detect, _plan),)
