"""Masked models over continuous tokens (MAR).

Tensor names: LTH14/mar `models/mar.py`, `models/diffloss.py` (arXiv 2406.11838).
"""

import math
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config.mar import MARConfig
from jaxspec.convert.family import ComputedParam, Family, Overrides, Plan
from jaxspec.convert.imagenet import imagenet_classes
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.sets import PLAIN
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors, infer_setting
from jaxspec.convert.transforms import Heads
from jaxspec.errors import ConfigError
from jaxspec.models.mar.presets import PRESETS


def _linear(source: str, target: str) -> tuple[KeyRule, ...]:
    return (
        KeyRule(f"{source}.weight", f"{target}/kernel", "linear"),
        KeyRule(f"{source}.bias", f"{target}/bias"),
    )


def _norm(source: str, target: str) -> tuple[KeyRule, ...]:
    return (
        KeyRule(f"{source}.weight", f"{target}/scale"),
        KeyRule(f"{source}.bias", f"{target}/bias"),
    )


def _layers(source: str, target: str) -> tuple[KeyRule, ...]:
    return (
        *_norm(f"{source}.norm1", f"{target}/attention_norm"),
        KeyRule(f"{source}.attn.qkv.weight", f"{target}/qkv/kernel", "heads_fused"),
        *_linear(f"{source}.attn.proj", f"{target}/out"),
        *_norm(f"{source}.norm2", f"{target}/ffn_norm"),
        *_linear(f"{source}.mlp.fc1", f"{target}/change"),
        *_linear(f"{source}.mlp.fc2", f"{target}/down"),
    )


_HEAD = "diffloss.net."
RULES = (
    *_linear("z_proj", "tokens_in"),
    *_norm("z_proj_ln", "norm_in"),
    *_layers("encoder_blocks.{i}", "encoder_{i}"),
    *_norm("encoder_norm", "encoder_norm"),
    *_linear("decoder_embed", "decoder_in"),
    *_layers("decoder_blocks.{i}", "decoder_{i}"),
    *_norm("decoder_norm", "decoder_norm"),
    *_linear(f"{_HEAD}time_embed.mlp.0", "head/time_in"),
    *_linear(f"{_HEAD}time_embed.mlp.2", "head/time_out"),
    *_linear(f"{_HEAD}cond_embed", "head/condition"),
    *_linear(f"{_HEAD}input_proj", "head/state_in"),
    *_norm(f"{_HEAD}res_blocks.{{i}}.in_ln", "head/layers_{i}/norm"),
    *_linear(f"{_HEAD}res_blocks.{{i}}.mlp.0", "head/layers_{i}/change"),
    *_linear(f"{_HEAD}res_blocks.{{i}}.mlp.2", "head/layers_{i}/down"),
    *_linear(
        f"{_HEAD}res_blocks.{{i}}.adaLN_modulation.1", "head/layers_{i}/modulation"
    ),
    *_linear(f"{_HEAD}final_layer.adaLN_modulation.1", "head/modulation"),
    *_linear(f"{_HEAD}final_layer.linear", "head/out"),
)
_POSITIONS = {
    "encoder_pos_embed_learned": "encoder_positions",
    "decoder_pos_embed_learned": "decoder_positions",
    "diffusion_pos_embed_learned": "head_positions",
}
# Guidance of the published FID, by width.
_CFG = {768: 2.9, 1024: 3.0, 1280: 3.2}


def _detect(source: Source) -> bool:
    return {"fake_latent", "mask_token", "z_proj.weight"} <= set(source.tensors)


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    width, channels = source.shape("z_proj.weight", 2)
    tokens = source.shape("diffusion_pos_embed_learned", 3)[1]
    total = source.shape("encoder_pos_embed_learned", 3)[1]
    grid = math.isqrt(tokens)
    if grid * grid != tokens:
        raise ConfigError(f"'{source.name}' has {tokens} tokens, no square")
    known = {preset.width: preset.heads for preset in PRESETS.values()}
    heads = infer_setting(
        source,
        overrides,
        "heads",
        None,
        known.get(width),
        description="its number of heads",
    )
    config = MARConfig(
        channels=channels,
        grid=grid,
        encoder_layers=count_tensors(source, "encoder_blocks.{i}.attn.qkv.weight"),
        decoder_layers=count_tensors(source, "decoder_blocks.{i}.attn.qkv.weight"),
        width=width,
        heads=heads,
        ffn_width=source.shape("encoder_blocks.0.mlp.fc1.weight", 2)[0],
        buffer=total - tokens,
        classes=source.shape("class_emb.weight", 2)[0],
        head_layers=count_tensors(source, f"{_HEAD}res_blocks.{{i}}.in_ln.weight"),
        head_width=source.shape(f"{_HEAD}input_proj.weight", 2)[0],
    )
    computed = {
        "classes/embedding": ComputedParam(
            ("class_emb.weight", "fake_latent"),
            lambda classes, null: np.concatenate([classes, null]),
        ),
        "mask": ComputedParam(("mask_token",), lambda x: x.reshape(-1)),
        **{
            ours: ComputedParam((name,), lambda x: x[0])
            for name, ours in _POSITIONS.items()
        },
    }

    def fused(x: np.ndarray) -> np.ndarray:
        return x.reshape(3, config.heads, -1)

    for part, count in (
        ("encoder", config.encoder_layers),
        ("decoder", config.decoder_layers),
    ):
        for i in range(count):
            name = f"{part}_blocks.{i}.attn.qkv.bias"
            computed[f"{part}_{i}/qkv/bias"] = ComputedParam((name,), fused)
    metadata: dict[str, Any] = {}
    if config.classes == 1000:
        metadata["class_names"] = imagenet_classes()
    if width in _CFG:
        metadata["generation"] = {"cfg_scale": _CFG[width]}
    return Plan(
        "mar",
        config,
        RULES,
        Heads(config.head_size, config.heads, config.heads),
        computed=computed,
        metadata=metadata,
    )


# The published evaluation uses the average.
FAMILIES = (Family("mar", _detect, _plan, weights=("model_ema", *PLAIN)),)
