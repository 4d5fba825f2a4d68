"""Autoencoders with continuous latents: MAR's KL-16, and those of diffusers.

Tensor names: LTH14/mar `models/vae.py` (the same as CompVis/latent-diffusion), and
diffusers `AutoencoderKL`.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import KLTokenizerConfig, TokenizerConfig
from jaxspec.convert.families.vq import LAYOUTS, image_side, network_sizes, vq_rules
from jaxspec.convert.family import Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.errors import ConfigError

# Factors of latents by their channels: KL-8 of arXiv 2112.10752, MAR's KL-16.
_SCALES = {4: 0.18215, 16: 0.2325}
# Names of diffusers, also those before 0.15, and those of the other layout.
_RENAMED = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.(down|up)_blocks\.", r".\1."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_q|query)\.", ".q."),
    (r"\.(?:to_k|key)\.", ".k."),
    (r"\.(?:to_v|value)\.", ".v."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
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
    layout = LAYOUTS["vq-janus" if diffusers else "vq-taming"]
    tensors = {_renamed(name): x for name, x in source.tensors.items()}
    sizes = network_sizes(
        replace(source, tensors=tensors) if diffusers else source, layout
    )
    side = source.config.get("sample_size")
    latents = source.shape("quant_conv.weight")[0] // 2
    networks = TokenizerConfig(
        image_size=image_side(
            source,
            overrides,
            side if isinstance(side, int) else None,
            2 ** (len(sizes["multipliers"]) - 1),
        ),
        groups=overrides.get("groups", source.config.get("norm_num_groups", 32)),
        codebook_size=1,
        code_dim=latents,
        normalized="none",
        **sizes,
    )
    published = source.config.get("scaling_factor", _SCALES.get(latents))
    scale = overrides.get("scale", published)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ConfigError(
            f"'{source.name}': the factor of its latents is {scale!r}; add --set "
            "scale=NUMBER"
        )
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
