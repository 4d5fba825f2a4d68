"""MaskGIT's VQGAN, in the PyTorch port that TiTok and RAR read.

Tensor names: bytedance/1d-tokenizer `modeling/modules/maskgit_vqgan.py` (arXiv
2202.04200).
"""

from collections.abc import Iterator

from jaxspec.checkpoint import Checkpoint
from jaxspec.config.one_d import MaskGITTokenizerConfig
from jaxspec.convert.families.vq import image_side
from jaxspec.convert.family import Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors


def norm_rules(source: str, target: str) -> tuple[KeyRule, ...]:
    """Rules of a norm with a scale and a bias."""
    return (
        KeyRule(f"{source}.weight", f"{target}/scale"),
        KeyRule(f"{source}.bias", f"{target}/bias"),
    )


def _conv(source: str, target: str) -> tuple[KeyRule, ...]:
    return (
        KeyRule(f"{source}.weight", f"{target}/kernel", "conv"),
        KeyRule(f"{source}.bias", f"{target}/bias"),
    )


def _block(source: str, target: str) -> Iterator[KeyRule]:
    for i in (1, 2):
        yield from norm_rules(f"{source}.norm{i}", f"{target}/norm{i}")
        yield _conv(f"{source}.conv{i}", f"{target}/conv{i}")[0]
    yield _conv(f"{source}.nin_shortcut", f"{target}/nin_shortcut")[0]


def half_rules(half: str, source: str, target: str) -> tuple[KeyRule, ...]:
    """Rules of the encoder or the decoder.

    Args:
      half: "encoder" or "decoder".
      source: prefix of the names of its tensors.
      target: path of its parameters.
    """
    levels = "down" if half == "encoder" else "up"
    return (
        *_conv(f"{source}.conv_in", f"{target}/conv_in"),
        *_block(f"{source}.{levels}.{{i}}.block.{{j}}", f"{target}/level_{{i}}_{{j}}"),
        *_block(f"{source}.mid.{{j}}", f"{target}/mid_{{j}}"),
        *_conv(f"{source}.up.{{i}}.upsample_conv", f"{target}/upsample_{{i}}"),
        *norm_rules(f"{source}.norm_out", f"{target}/norm_out"),
        *_conv(f"{source}.conv_out", f"{target}/conv_out"),
    )


def decoder_sizes(source: Source, root: str, overrides: Overrides) -> dict:
    """Sizes of a decoder, entries of `MaskGITTokenizerConfig`.

    Args:
      source: files.
      root: prefix of the names of its tensors.
      overrides: settings by name.

    Raises:
      DataError: a tensor by which a size is known is missing.
    """
    first = f"{root}.up.{{i}}.block.0.conv1.weight"
    levels = count_tensors(source, first)
    widths = [source.shape(first.replace("{i}", str(i)))[0] for i in range(levels)]
    return {
        "channels": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "blocks": count_tensors(source, f"{root}.up.0.block.{{i}}.conv1.weight"),
        "groups": overrides.get("groups", 32),
    }


def _detect(source: Source) -> bool:
    names = {"encoder.mid.0.conv1.weight", "decoder.mid.0.conv1.weight"}
    names |= {"encoder.down.0.block.0.conv1.weight", "quantize.embedding.weight"}
    return names <= set(source.tensors)


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    sizes = decoder_sizes(source, "decoder", overrides)
    codebook_size, code_dim = source.shape("quantize.embedding.weight", 2)
    config = MaskGITTokenizerConfig(
        image_size=image_side(
            source,
            overrides,
            source.config.get("resolution"),
            2 ** (len(sizes["multipliers"]) - 1),
        ),
        codebook_size=codebook_size,
        code_dim=code_dim,
        **sizes,
    )
    rules = (
        KeyRule("quantize.embedding.weight", "codebook"),
        *half_rules("encoder", "encoder", "encoder"),
        *half_rules("decoder", "decoder", "decoder"),
    )
    return Plan("maskgit_tokenizer", config, rules, ignored=(r"loss\..*",))


FAMILIES = (Family("vq-maskgit", _detect, _plan),)
