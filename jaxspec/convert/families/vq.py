"""VQ tokenizers: LlamaGen's VQ-16 and VQ-8, Janus's, and VQGAN as Chameleon has it.

One network in three layouts (names of levels) and with three ways of comparing codes.
Keys: LlamaGen `tokenizer/tokenizer_image/vq_model.py`, transformers `JanusVQVAE`,
taming-transformers `modules/diffusionmodules/model.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TokenizerConfig
from jaxspec.convert.family import Family, Given, Plan, agree_on, count, only, setting
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.stored import Source
from jaxspec.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Names of one of the releases.

    Attributes:
      levels: of a level of the encoder and of the decoder.
      block: of a level's residual blocks.
      middle: of the three blocks in the middle.
      by_resolution: the decoder's level 0 has the full resolution (taming); else
        levels are in the order in which they run.
      normalized: see `TokenizerConfig`.
    """

    levels: tuple[str, str]
    block: str
    middle: tuple[str, str, str]
    by_resolution: bool
    normalized: Literal["both", "decoding", "none"]


MIDDLE = ("mid.block_1", "mid.attn_1", "mid.block_2")
LAYOUTS = {
    "vq-llamagen": Layout(
        ("encoder.conv_blocks", "decoder.conv_blocks"),
        "res",
        ("mid.0", "mid.1", "mid.2"),
        False,
        "both",
    ),
    "vq-janus": Layout(
        ("encoder.down", "decoder.up"), "block", MIDDLE, False, "decoding"
    ),
    "vq-taming": Layout(("encoder.down", "decoder.up"), "block", MIDDLE, True, "none"),
}
# Where larger models keep their tokenizer.
ROOTS = ("", "model.vqmodel.", "gen_vision_model.")
IGNORED = (r"quantize\.codebook_used", r"quantize\.codebook_usage.*", r"loss\..*")


def _pair(theirs: str, ours: str, kernel: str = "conv") -> Iterator[Rule]:
    name = "kernel" if kernel == "conv" else "scale"
    yield Rule(f"{theirs}.weight", f"{ours}/{name}", kernel)
    yield Rule(f"{theirs}.bias", f"{ours}/bias")


def _block(theirs: str, ours: str) -> Iterator[Rule]:
    for i in (1, 2):
        yield from _pair(f"{theirs}.norm{i}", f"{ours}/norm{i}", "same")
        yield from _pair(f"{theirs}.conv{i}", f"{ours}/conv{i}")
    yield from _pair(f"{theirs}.nin_shortcut", f"{ours}/nin_shortcut")


def _attention(theirs: str, ours: str) -> Iterator[Rule]:
    yield from _pair(f"{theirs}.norm", f"{ours}/norm", "same")
    for name in ("q", "k", "v", "proj_out"):
        yield from _pair(f"{theirs}.{name}", f"{ours}/{name}")


def vq_rules(
    layout: Layout, config: TokenizerConfig, root: str = ""
) -> tuple[Rule, ...]:
    """The rules of a tokenizer; the decoder's levels may be numbered backwards."""
    levels = len(config.multipliers)
    rules = [Rule(f"{root}quantize.embedding.weight", "codebook")]
    for name in ("quant_conv", "post_quant_conv"):
        rules += _pair(root + name, name)
    for half, level in zip(("encoder", "decoder"), layout.levels, strict=True):
        for end in ("conv_in", "conv_out"):
            rules += _pair(f"{root}{half}.{end}", f"{half}/{end}")
        rules += _pair(f"{root}{half}.norm_out", f"{half}/norm_out", "same")
        for i, name in enumerate(layout.middle):
            make = _attention if i == 1 else _block
            rules += make(f"{root}{half}.{name}", f"{half}/mid/{i}")
        for i in range(levels):
            number = i
            if half == "decoder" and layout.by_resolution:
                number = levels - 1 - i
            theirs, ours = f"{root}{level}.{number}", f"{half}/conv_blocks_{i}"
            rules += _block(f"{theirs}.{layout.block}.{{j}}", f"{ours}/res_{{j}}")
            rules += _attention(f"{theirs}.attn.{{j}}", f"{ours}/attn_{{j}}")
            change = "downsample" if half == "encoder" else "upsample"
            rules += _pair(f"{theirs}.{change}.conv", f"{ours}/{change}/conv")
    return tuple(rules)


def _root(source: Source) -> str | None:
    for root in ROOTS:
        if f"{root}quantize.embedding.weight" in source.tensors:
            return root
    return None


# What LlamaGen calls settings, and the Hugging Face layout.
SAME = {
    "codebook_size": "num_embeddings",
    "codebook_embed_dim": "embed_dim",
    "z_channels": "latent_channels",
    "encoder_ch_mult": "channel_multiplier",
}


def _part(source: Source) -> str | None:
    """Where the config of a larger model keeps that of its tokenizer."""
    parts = ("vq_config", "gen_vision_config")
    return next((part for part in parts if part in source.config), None)


def _settings(source: Source) -> Given:
    """The tokenizer's part of the config, by the names of the Hugging Face layout."""
    part = _part(source)
    said = source.config[part] if part else source.config
    names = ("resolution", "num_patches", "base_channels", "num_res_blocks")
    names += ("codebook_l2_norm", "decoder_ch_mult", "attn_type", "double_latent")
    names += ("in_channels", "out_channels", *SAME, *SAME.values())
    # Of Janus's maps from codes to its language model.
    names += ("projection_dim", "image_token_embed_dim", "hidden_act")
    return {SAME.get(name, name): said[name] for name in names if name in said}


def _plan(layout: Layout, source: Source, given: Given) -> Plan:
    root = _root(source)
    if root is None or f"{root}decoder.conv_in.weight" not in source.tensors:
        raise ConfigError(
            f"'{source.name}' has no decoder, and so makes no images (Chameleon's is "
            "in its original vqgan.ckpt)"
        )
    first = f"{root}{layout.levels[0]}.{{i}}.{layout.block}.0.conv1.weight"
    levels = count(source, first)
    widths = [source.shape(first.replace("{i}", str(i)))[0] for i in range(levels)]
    channels = source.shape(f"{root}encoder.conv_in.weight")[0]
    codes, dim = source.shape(f"{root}quantize.embedding.weight", 2)
    attention = {
        i
        for i in range(levels)
        if f"{root}{layout.levels[0]}.{i}.attn.0.q.weight" in source.tensors
    }
    if attention - {levels - 1}:
        raise ConfigError(
            f"'{source.name}' has attention in the levels {sorted(attention)}; only "
            "the lowest one's can be converted"
        )

    def blocks(half: int) -> int:
        name = f"{root}{layout.levels[half]}.0.{layout.block}.{{i}}.conv1.weight"
        return count(source, name)

    said = _settings(source)
    step = 2 ** (levels - 1)
    known = said.get("resolution")
    if known is None and "num_patches" in said:
        known = said["num_patches"] * step
    side = setting(
        source,
        given,
        "image_size",
        known,
        wanted="the side of its images in pixels (a prior in the same bundle would)",
        guess=step,
    )
    plain = said.get("codebook_l2_norm") is False
    normalized = "none" if plain else layout.normalized
    config = TokenizerConfig(
        image_size=side,
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        encoder_blocks=blocks(0),
        decoder_blocks=blocks(1),
        attention="lowest" if attention else "middle",
        latent_channels=source.shape(f"{root}encoder.conv_out.weight")[0],
        codebook_size=codes,
        code_dim=dim,
        normalized=normalized,
    )
    found = {
        "in_channels": 3,
        "out_channels": 3,
        "num_embeddings": codes,
        "embed_dim": dim,
        "base_channels": channels,
        "latent_channels": config.latent_channels,
        "num_res_blocks": config.encoder_blocks,
        "channel_multiplier": list(config.multipliers),
        "decoder_ch_mult": list(config.multipliers),
    }
    agree_on(source, said, found)
    only(source, said, {"attn_type": ("vanilla",), "double_latent": (False,)})
    ignored = tuple(f"{root.replace('.', chr(92) + '.')}{i}" for i in IGNORED)
    if root:  # the rest is another part of a larger model
        ignored += (rf"(?!{root.replace('.', chr(92) + '.')}).*",)
    return Plan(
        "tokenizer",
        config,
        vq_rules(layout, config, root),
        ignored=ignored,
        part=_part(source),
    )


def _family(name: str, layout: Layout, mark: Any) -> Family:
    def detect(source: Source) -> bool:
        root = _root(source)
        if root is None or f"{root}decoder.conv_in.weight" not in source.tensors:
            return False
        inside = {n.removeprefix(root) for n in source.tensors if n.startswith(root)}
        return mark(inside)

    def plan(source: Source, given: Given, target: Checkpoint | None) -> Plan:
        return _plan(layout, source, given)

    return Family(name, detect, plan)


def _reversed(names: set[str]) -> bool:
    """The decoder's level 0 is the last to run: it has no upsampling."""
    return "decoder.up.0.upsample.conv.weight" not in names


FAMILIES = (
    _family(
        "vq-llamagen",
        LAYOUTS["vq-llamagen"],
        lambda names: "encoder.conv_blocks.0.res.0.conv1.weight" in names,
    ),
    _family(
        "vq-janus",
        LAYOUTS["vq-janus"],
        lambda names: (
            "encoder.down.0.block.0.conv1.weight" in names and not _reversed(names)
        ),
    ),
    _family(
        "vq-taming",
        LAYOUTS["vq-taming"],
        lambda names: (
            "encoder.down.0.block.0.conv1.weight" in names and _reversed(names)
        ),
    ),
)
