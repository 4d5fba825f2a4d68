"""VAR's next-scale transformers, and those of CoDe in the same layout.

Tensor names: FoundationVision/VAR `models/var.py`, `models/basic_var.py` (arXiv
2404.02905); CoDe's drafters and refiners (arXiv 2411.17787).
"""

import math
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


RULES = (
    KeyRule("class_emb.weight", "classes/embedding"),
    KeyRule("lvl_embed.weight", "levels"),
    *_linear("word_embed", "vectors_in"),
    *_linear("shared_ada_lin.1", "modulation"),
    *_linear("head_nm.ada_lin.1", "head_modulation"),
    *_linear("head", "logits"),
    KeyRule(
        "blocks.{i}.attn.mat_qkv.weight",
        "blocks_{i}/attention/qkv/kernel",
        "heads_fused",
    ),
    KeyRule("blocks.{i}.attn.q_bias", "blocks_{i}/attention/q_bias"),
    KeyRule("blocks.{i}.attn.v_bias", "blocks_{i}/attention/v_bias"),
    *_linear("blocks.{i}.attn.proj", "blocks_{i}/attention/out"),
    *_linear("blocks.{i}.ada_lin.1", "blocks_{i}/modulation"),
    *_linear("blocks.{i}.ffn.fc1", "blocks_{i}/change"),
    *_linear("blocks.{i}.ffn.fc2", "blocks_{i}/down"),
)
# Numbers of scales and masks, and a bias of keys that is always 0.
IGNORED = (r"lvl_1L", r"attn_bias_for_masking", r"blocks\.\d+\.attn\.zero_k_bias")
# Samples of the published FID; VAR's own scale of guidance is 1 less than ours.
PUBLISHED = {"generation": {"cfg_scale": 2.5, "top_k": 900, "top_p": 0.96}}


def _detect(source: Source) -> bool:
    return {"pos_1LC", "lvl_embed.weight", "word_embed.weight"} <= set(source.tensors)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1)


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    if "blocks.0.attn.scale_mul_1H11" not in source.tensors:
        raise ConfigError(
            f"'{source.name}' has no blocks.0.attn.scale_mul_1H11; models without "
            "normalized queries and keys are not supported"
        )
    classes, width = source.shape("class_emb.weight", 2)
    vocab_size = source.shape("head.weight", 2)[0]
    layers = count_tensors(source, "blocks.{i}.attn.q_bias")
    shared = "shared_ada_lin.1.weight" in source.tensors
    config = NextScaleConfig(
        vocab_size=vocab_size,
        code_dim=source.shape("word_embed.weight", 2)[1],
        layers=layers,
        width=width,
        heads=source.shape("blocks.0.attn.scale_mul_1H11", 4)[1],
        ffn_width=source.shape("blocks.0.ffn.fc1.weight", 2)[0],
        scales=_scales(source),
        classes=classes - 1,
        shared_modulation=shared,
    )
    computed = {
        "start": ComputedParam(("pos_start",), _flat),
        "positions": ComputedParam(("pos_1LC",), lambda x: x[0]),
    }
    for i in range(layers):
        name = f"blocks.{i}.attn.scale_mul_1H11"
        computed[f"blocks_{i}/attention/log_scale"] = ComputedParam((name,), _flat)
        if shared:
            name = f"blocks.{i}.ada_gss"
            computed[f"blocks_{i}/modulation"] = ComputedParam((name,), _flat)
    settings: dict[str, Any] = dict(PUBLISHED)
    if config.classes == 1000:
        settings["class_names"] = imagenet_classes()
    heads = Heads(config.head_size, config.heads, config.heads)
    return Plan(
        "next_scale",
        config,
        RULES,
        heads,
        computed=computed,
        ignored=IGNORED,
        metadata=settings,
    )


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
