"""Autoencoders with continuous latents: MAR's KL-16, and those of diffusers.

Tensor names: LTH14/mar `models/vae.py` (the same as CompVis/latent-diffusion), and
diffusers `AutoencoderKL`.
"""

import re
from collections.abc import Iterator

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import KLTokenizerConfig, TokenizerConfig
from jaxspec.convert.families.vq import LAYOUTS, vq_rules
from jaxspec.convert.family import Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors, infer_setting
from jaxspec.errors import ConfigError

# Factors of latents by their channels: KL-8 of arXiv 2112.10752, MAR's KL-16.
_SCALES = {4: 0.18215, 16: 0.2325}
# Names of diffusers, and those of the other layout.
_RENAMED = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.(down|up)_blocks\.", r".\1."),
    (r"\.resnets\.", ".block."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_norm_out\.", ".norm_out."),
)


def _is_diffusers(source: Source) -> bool:
    return "encoder.down_blocks.0.resnets.0.conv1.weight" in source.tensors


def _detect(source: Source) -> bool:
    names = {"quant_conv.weight", "post_quant_conv.weight", "decoder.conv_in.weight"}
    quantized = any(name.startswith("quantize.") for name in source.tensors)
    return names <= set(source.tensors) and not quantized


def _diffusers_rules(source: Source, rules: tuple[KeyRule, ...]) -> Iterator[KeyRule]:
    """Rules for the names of diffusers, whose attention is made of linear layers."""
    for name, tensor in source.tensors.items():
        for rule in rules:
            if path := rule.target_path(_renamed(name)):
                transform = "same"
                if path.endswith("/kernel"):
                    transform = "conv" if len(tensor.shape) == 4 else "pointwise"
                yield KeyRule(name, path, transform)


def _renamed(name: str) -> str:
    for pattern, text in _RENAMED:
        name = re.sub(pattern, text, name)
    return name


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    diffusers = _is_diffusers(source)
    down, up, block = (
        ("down_blocks", "up_blocks", "resnets")
        if diffusers
        else ("down", "up", "block")
    )
    first = f"encoder.{down}.{{i}}.{block}.0.conv1.weight"
    levels = count_tensors(source, first)
    widths = [source.shape(first.replace("{i}", str(i)))[0] for i in range(levels)]
    channels = source.shape("encoder.conv_in.weight")[0]
    attention = {
        i for i in range(levels) if f"encoder.{down}.{i}.attn.0.q.weight"
        in source.tensors
    }  # fmt: skip
    if attention - {levels - 1}:
        raise ConfigError(
            f"'{source.name}' has attention in the levels {sorted(attention)}, which "
            "is supported in the lowest one only"
        )
    size = source.config.get("sample_size")
    latents = source.shape("quant_conv.weight")[0] // 2
    networks = TokenizerConfig(
        image_size=infer_setting(
            source,
            overrides,
            "image_size",
            size if isinstance(size, int) else None,
            description="the side of its images in pixels (which a prior in the same "
            "bundle determines)",
            placeholder=1 << (levels - 1),
        ),
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        encoder_blocks=count_tensors(
            source, f"encoder.{down}.0.{block}.{{i}}.conv1.weight"
        ),
        decoder_blocks=count_tensors(
            source, f"decoder.{up}.0.{block}.{{i}}.conv1.weight"
        ),
        attention="lowest" if attention else "middle",
        groups=overrides.get("groups", source.config.get("norm_num_groups", 32)),
        latent_channels=source.shape("decoder.conv_in.weight")[1],
        codebook_size=1,
        code_dim=latents,
        normalized="none",
    )
    published = source.config.get("scaling_factor", _SCALES.get(latents))
    scale = overrides.get("scale", published)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ConfigError(
            f"'{source.name}': the factor of its latents is {scale!r}; add --set "
            "scale=NUMBER"
        )
    layout = LAYOUTS["vq-janus" if diffusers else "vq-taming"]
    rules = tuple(
        rule for rule in vq_rules(layout, networks) if rule.target != "codebook"
    )
    if diffusers:
        rules = tuple(_diffusers_rules(source, rules))
    return Plan(
        "kl_tokenizer", KLTokenizerConfig(networks, float(scale)), rules,
        ignored=(r"loss\..*",)
    )  # fmt: skip


FAMILIES = (Family("kl", _detect, _plan),)
