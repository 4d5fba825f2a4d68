"""VQ tokenizers: LlamaGen's VQ-16 and VQ-8, Janus's, and Chameleon's VQGAN.

The network is the same; releases differ in the names of levels and in the normalization
of codes.

Tensor names: LlamaGen `tokenizer/tokenizer_image/vq_model.py`, transformers
`JanusVQVAE`, taming-transformers `modules/diffusionmodules/model.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TokenizerConfig
from jaxspec.convert.family import Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors, infer_setting
from jaxspec.convert.source_config import check_consistent, check_supported
from jaxspec.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Tensor names of a release.

    Attributes:
      levels: names of the levels of the encoder and of the decoder.
      block: name of a level's residual blocks.
      middle: names of the three middle blocks.
      by_resolution: whether level 0 of the decoder has the full resolution (taming);
        otherwise levels are numbered in the order of execution.
      normalized: normalization of codes, as in `TokenizerConfig`.
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
# Prefixes of the tokenizer in files of larger models.
ROOTS = ("", "model.vqmodel.", "gen_vision_model.")
IGNORED = (r"quantize\.codebook_used", r"quantize\.codebook_usage.*", r"loss\..*")


def _conv_or_norm(source: str, target: str, kernel: str = "conv") -> Iterator[KeyRule]:
    name = "kernel" if kernel == "conv" else "scale"
    yield KeyRule(f"{source}.weight", f"{target}/{name}", kernel)
    yield KeyRule(f"{source}.bias", f"{target}/bias")


def _block(source: str, target: str) -> Iterator[KeyRule]:
    for i in (1, 2):
        yield from _conv_or_norm(f"{source}.norm{i}", f"{target}/norm{i}", "same")
        yield from _conv_or_norm(f"{source}.conv{i}", f"{target}/conv{i}")
    yield from _conv_or_norm(f"{source}.nin_shortcut", f"{target}/nin_shortcut")


def _attention(source: str, target: str) -> Iterator[KeyRule]:
    yield from _conv_or_norm(f"{source}.norm", f"{target}/norm", "same")
    for name in ("q", "k", "v", "proj_out"):
        yield from _conv_or_norm(f"{source}.{name}", f"{target}/{name}")


def vq_rules(
    layout: Layout, config: TokenizerConfig, root: str = ""
) -> tuple[KeyRule, ...]:
    """Returns the rules of a tokenizer.

    Args:
      layout: tensor names of the release.
      config: configuration of the tokenizer.
      root: prefix of all names.
    """
    levels = len(config.multipliers)
    rules = [KeyRule(f"{root}quantize.embedding.weight", "codebook")]
    for name in ("quant_conv", "post_quant_conv"):
        rules += _conv_or_norm(root + name, name)
    for half, level in zip(("encoder", "decoder"), layout.levels, strict=True):
        for end in ("conv_in", "conv_out"):
            rules += _conv_or_norm(f"{root}{half}.{end}", f"{half}/{end}")
        rules += _conv_or_norm(f"{root}{half}.norm_out", f"{half}/norm_out", "same")
        for i, name in enumerate(layout.middle):
            make_rules = _attention if i == 1 else _block
            rules += make_rules(f"{root}{half}.{name}", f"{half}/mid/{i}")
        for i in range(levels):
            number = i
            if half == "decoder" and layout.by_resolution:
                number = levels - 1 - i
            source, target = f"{root}{level}.{number}", f"{half}/conv_blocks_{i}"
            rules += _block(f"{source}.{layout.block}.{{j}}", f"{target}/res_{{j}}")
            rules += _attention(f"{source}.attn.{{j}}", f"{target}/attn_{{j}}")
            resample = "downsample" if half == "encoder" else "upsample"
            rules += _conv_or_norm(
                f"{source}.{resample}.conv", f"{target}/{resample}/conv"
            )
    return tuple(rules)


def _root(source: Source) -> str | None:
    """Returns the prefix of the tokenizer's names; None if there is no tokenizer."""
    for root in ROOTS:
        if f"{root}quantize.embedding.weight" in source.tensors:
            return root
    return None


# LlamaGen's names of entries of config.json, and Hugging Face's.
ALIASES = {
    "codebook_size": "num_embeddings",
    "codebook_embed_dim": "embed_dim",
    "z_channels": "latent_channels",
    "encoder_ch_mult": "channel_multiplier",
}


def _config_section(source: Source) -> str | None:
    """Returns the key of the tokenizer's section in the config of a larger model."""
    keys = ("vq_config", "gen_vision_config")
    return next((key for key in keys if key in source.config), None)


def _normalized_config(source: Source) -> dict[str, Any]:
    """Returns the tokenizer's section of the config with Hugging Face's names."""
    section = _config_section(source)
    source_config = source.config[section] if section else source.config
    names = ("resolution", "num_patches", "base_channels", "num_res_blocks")
    names += ("codebook_l2_norm", "decoder_ch_mult", "attn_type", "double_latent")
    names += ("in_channels", "out_channels", *ALIASES, *ALIASES.values())
    # Entries about Janus's aligner, which have no effect here.
    names += ("projection_dim", "image_token_embed_dim", "hidden_act")
    return {
        ALIASES.get(name, name): source_config[name]
        for name in names
        if name in source_config
    }


def network_sizes(source: Source, layout: Layout, root: str = "") -> dict[str, Any]:
    """Sizes of encoder and decoder, entries of `TokenizerConfig`.

    Raises:
      ConfigError: a level above the lowest one has attention.
      DataError: a tensor by which a size is known is missing.
    """
    encoder, decoder = (root + level for level in layout.levels)
    first = f"{encoder}.{{i}}.{layout.block}.0.conv1.weight"
    levels = count_tensors(source, first)
    widths = [source.shape(first.replace("{i}", str(i)))[0] for i in range(levels)]
    channels = source.shape(f"{root}encoder.conv_in.weight")[0]

    def count_blocks(level: str) -> int:
        return count_tensors(source, f"{level}.0.{layout.block}.{{i}}.conv1.weight")

    attention = [
        i for i in range(levels) if f"{encoder}.{i}.attn.0.q.weight" in source.tensors
    ]
    if attention and attention != [levels - 1]:
        raise ConfigError(
            f"'{source.name}' has attention in the levels {attention}, which is "
            "supported in the lowest one only"
        )
    return {
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "encoder_blocks": count_blocks(encoder),
        "decoder_blocks": count_blocks(decoder),
        "attention": "lowest" if attention else "middle",
        "latent_channels": source.shape(f"{root}decoder.conv_in.weight")[1],
    }


def image_side(
    source: Source, overrides: Overrides, resolution: Any, downsampling: int
) -> int:
    """Infers the side of an image in pixels.

    Args:
      source: files of the tokenizer.
      overrides: settings by name.
      resolution: side in the files' configuration; None if it has none.
      downsampling: pixels along the side of a cell.

    Raises:
      MissingSettings: it is unknown.
    """
    return infer_setting(
        source,
        overrides,
        "image_size",
        resolution,
        description="the side of its images in pixels (which a prior in the same "
        "bundle determines)",
        placeholder=downsampling,
    )


def _plan(layout: Layout, source: Source, overrides: Overrides) -> Plan:
    root = _root(source)
    if root is None or f"{root}decoder.conv_in.weight" not in source.tensors:
        raise ConfigError(
            f"'{source.name}' has no decoder for images (Chameleon's is in its "
            "original vqgan.ckpt)"
        )
    codebook_size, code_dim = source.shape(f"{root}quantize.embedding.weight", 2)
    sizes = network_sizes(source, layout, root)
    source_config = _normalized_config(source)
    unnormalized = source_config.get("codebook_l2_norm") is False
    downsampling = 2 ** (len(sizes["multipliers"]) - 1)
    resolution = source_config.get("resolution")
    if resolution is None and "num_patches" in source_config:
        resolution = source_config["num_patches"] * downsampling
    config = TokenizerConfig(
        image_size=image_side(source, overrides, resolution, downsampling),
        codebook_size=codebook_size,
        code_dim=code_dim,
        normalized="none" if unnormalized else layout.normalized,
        **sizes,
    )
    expected = {
        "in_channels": 3,
        "out_channels": 3,
        "num_embeddings": codebook_size,
        "embed_dim": code_dim,
        "base_channels": config.channels,
        "latent_channels": config.latent_channels,
        "num_res_blocks": config.encoder_blocks,
        "channel_multiplier": list(config.multipliers),
        "decoder_ch_mult": list(config.multipliers),
    }
    check_consistent(source, source_config, expected)
    check_supported(
        source, source_config, {"attn_type": ("vanilla",), "double_latent": (False,)}
    )
    ignored = tuple(f"{root.replace('.', chr(92) + '.')}{i}" for i in IGNORED)
    if root:  # other names belong to the larger model
        ignored += (rf"(?!{root.replace('.', chr(92) + '.')}).*",)
    return Plan(
        "tokenizer",
        config,
        vq_rules(layout, config, root),
        ignored=ignored,
        config_section=_config_section(source),
    )


def _family(name: str, layout: Layout, matches: Callable[[set[str]], bool]) -> Family:
    def detect(source: Source) -> bool:
        root = _root(source)
        if root is None or f"{root}decoder.conv_in.weight" not in source.tensors:
            return False
        names = {n.removeprefix(root) for n in source.tensors if n.startswith(root)}
        return matches(names)

    def plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
        return _plan(layout, source, overrides)

    return Family(name, detect, plan)


def _reversed(names: set[str]) -> bool:
    """Returns whether the decoder's level 0 runs last, as it has no upsampling."""
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
