"""One-dimensional tokenizers: TiTok, TA-TiTok and One-D-Piece.

Tensor names: bytedance/1d-tokenizer `modeling/titok.py`, `modeling/modules/blocks.py`
(arXiv 2406.07550); One-D-Piece has the same (arXiv 2501.10064), and TA-TiTok
(arXiv 2501.07730) two more of the text that its decoder reads.
"""

from functools import partial
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config.one_d import (
    MaskGITTokenizerConfig,
    OneDTokenizerConfig,
    ViTConfig,
)
from jaxspec.convert.families.maskgit_vq import decoder_sizes, half_rules, norm_rules
from jaxspec.convert.family import ComputedParam, Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors
from jaxspec.errors import ConfigError

_HEAD_SIZE = 64
_QUERIES = "encoder.latent_token_positional_embedding"
_TEXT = "decoder.text_guidance_proj"
_TEXT_POSITIONS = "decoder.text_guidance_positional_embedding"


def _linear(source: str, target: str) -> tuple[KeyRule, ...]:
    return (
        KeyRule(f"{source}.weight", f"{target}/kernel", "linear"),
        KeyRule(f"{source}.bias", f"{target}/bias"),
    )


def _vit(half: str) -> tuple[KeyRule, ...]:
    source, target = f"{half}.transformer.{{i}}", f"{half}/body/layers_{{i}}"
    return (
        KeyRule(f"{half}.class_embedding", f"{half}/first"),
        KeyRule(f"{half}.positional_embedding", f"{half}/positions"),
        KeyRule(f"{half}.latent_token_positional_embedding", f"{half}/query_positions"),
        *norm_rules(f"{half}.ln_pre", f"{half}/body/norm_in"),
        *norm_rules(f"{half}.ln_post", f"{half}/norm_out"),
        *norm_rules(f"{source}.ln_1", f"{target}/attention_norm"),
        *norm_rules(f"{source}.ln_2", f"{target}/ffn_norm"),
        *_linear(f"{source}.attn.out_proj", f"{target}/out"),
        *_linear(f"{source}.mlp.c_fc", f"{target}/change"),
        *_linear(f"{source}.mlp.c_proj", f"{target}/down"),
    )


RULES = (
    KeyRule("quantize.embedding.weight", "codebook"),
    KeyRule("latent_tokens", "encoder/queries"),
    KeyRule("encoder.patch_embed.bias", "encoder/patches_in/bias"),
    KeyRule("encoder.conv_out.bias", "encoder/out/bias"),
    *_vit("encoder"),
    *_linear("decoder.decoder_embed", "decoder/vectors_in"),
    *_vit("decoder"),
)
_CODES = (
    KeyRule("decoder.ffn.0.bias", "codes/change/bias"),
    KeyRule("decoder.ffn.2.bias", "codes/down/bias"),
    KeyRule("pixel_quantize.embedding.weight", "pixel_tokenizer/codebook"),
    *half_rules("decoder", "pixel_decoder", "pixel_tokenizer/decoder"),
)
_PIXELS = (
    KeyRule("decoder.ffn.0.bias", "pixels/change/bias"),
    KeyRule("decoder.conv_out.weight", "pixels/conv/kernel", "conv"),
    KeyRule("decoder.conv_out.bias", "pixels/conv/bias"),
)
_TEXTS = (
    *_linear(_TEXT, "decoder/text_in"),
    KeyRule(_TEXT_POSITIONS, "decoder/text_positions"),
)


def _detect(source: Source) -> bool:
    names = {"latent_tokens", _QUERIES, "decoder.decoder_embed.weight"}
    return names <= set(source.tensors)


def _pointwise(x: np.ndarray) -> np.ndarray:
    """Matrix [in, out] of a 1x1 convolution."""
    return x[:, :, 0, 0].T


def _patches(x: np.ndarray) -> np.ndarray:
    """Matrix of a convolution whose kernels do not overlap."""
    return x.transpose(2, 3, 1, 0).reshape(-1, len(x))


def _fused(heads: int, x: np.ndarray) -> np.ndarray:
    """Kernel [D, 3, H, F] or bias [3, H, F] of queries, keys and values."""
    return (
        np.moveaxis(x.reshape(3, heads, -1, *x.shape[1:]), -1, 0)
        if x.ndim == 2
        else x.reshape(3, heads, -1)
    )


def _choice(overrides: Overrides, name: str, default: bool) -> bool:
    """A setting that is true or false.

    Raises:
      ConfigError: it is something else.
    """
    value = overrides.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}; choose true or false")
    return value


def _sizes(source: Source, half: str, overrides: Overrides) -> ViTConfig:
    first = f"{half}.transformer.{{i}}.attn.in_proj_weight"
    width = source.shape(f"{half}.positional_embedding", 2)[1]
    heads = overrides.get("heads", max(width // _HEAD_SIZE, 1))
    return ViTConfig(count_tensors(source, first), width, heads)


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    texts = f"{_TEXT}.weight" in source.tensors
    two_stage = "pixel_quantize.embedding.weight" in source.tensors
    codebook_size, code_dim = source.shape("quantize.embedding.weight", 2)
    length = source.shape(_QUERIES, 2)[0]
    encoder, decoder = (_sizes(source, h, overrides) for h in ("encoder", "decoder"))
    patch = source.shape("encoder.patch_embed.weight", 4)[-1]
    patches = round((source.shape("encoder.positional_embedding", 2)[0] - 1) ** 0.5)
    pixels = None
    if two_stage:
        book = source.shape("pixel_quantize.embedding.weight", 2)
        pixels = MaskGITTokenizerConfig(
            image_size=patch * patches,
            codebook_size=book[0],
            code_dim=book[1],
            **decoder_sizes(source, "pixel_decoder", overrides),
        )
    config = OneDTokenizerConfig(
        image_size=patch * patches,
        patch_size=patch,
        length=length,
        codebook_size=codebook_size,
        code_dim=code_dim,
        normalized=_choice(overrides, "normalized", two_stage),
        encoder=encoder,
        decoder=decoder,
        pixels=pixels,
        mixed_order=_choice(overrides, "mixed_order", two_stage),
        # Of the released models those with 256 tokens of two stages are One-D-Piece's.
        prefixes=_choice(overrides, "prefixes", two_stage and length == 256),
        text_length=source.shape(_TEXT_POSITIONS, 2)[0] if texts else 0,
        text_width=source.shape(f"{_TEXT}.weight", 2)[1] if texts else 0,
    )
    ends = _CODES if two_stage else _PIXELS
    rules = (*RULES, *ends, *(_TEXTS if texts else ()))
    return Plan(
        "one_d_tokenizer",
        config,
        rules,
        computed=_computed(config),
        ignored=(r"quantize\.embed_prob", r"pixel_(encoder|quant_conv)\..*"),
    )


def _computed(config: OneDTokenizerConfig) -> dict[str, ComputedParam]:
    result: dict[str, Any] = {
        "encoder/patches_in/kernel": (_patches, "encoder.patch_embed.weight"),
        "encoder/out/kernel": (_pointwise, "encoder.conv_out.weight"),
        "decoder/mask": (lambda x: x[0], "decoder.mask_token"),
    }
    if config.pixels is None:
        result["pixels/change/kernel"] = (_pointwise, "decoder.ffn.0.weight")
    else:
        result["codes/change/kernel"] = (_pointwise, "decoder.ffn.0.weight")
        result["codes/down/kernel"] = (_pointwise, "decoder.ffn.2.weight")
    for half, vit in (("encoder", config.encoder), ("decoder", config.decoder)):
        for i in range(vit.layers):
            source, path = f"{half}.transformer.{i}.attn.in_proj_", f"{half}/body"
            for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
                place = f"{path}/layers_{i}/qkv/{ours}"
                result[place] = (partial(_fused, vit.heads), source + theirs)
    return {
        path: ComputedParam((name,), compute)
        for path, (compute, name) in result.items()
    }


FAMILIES = (Family("vq-titok", _detect, _plan),)
