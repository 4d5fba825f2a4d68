"""VAR's multi-scale VQ tokenizer.

Tensor names: FoundationVision/VAR `models/vqvae.py`, `quant.py` and `basic_vae.py`
(arXiv 2404.02905).
"""

from functools import partial

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import MultiScaleTokenizerConfig, TokenizerConfig
from jaxspec.config.next_scale import SCALES_256
from jaxspec.convert.families.vq import LAYOUTS, vq_rules
from jaxspec.convert.family import ComputedParam, Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors
from jaxspec.errors import ConfigError

_FIRST = "quantize.quant_resi.qresi_ls.0.weight"
_BLOCK = "encoder.down.{i}.block.0.conv1.weight"
RESIDUAL = (
    KeyRule(
        "quantize.quant_resi.qresi_ls.{i}.weight", "residual_convs/{i}/kernel", "conv"
    ),
    KeyRule("quantize.quant_resi.qresi_ls.{i}.bias", "residual_convs/{i}/bias"),
)
IGNORED = (r"quantize\.ema_vocab_hit_SV", r".*\.attn(_1|\.\d+)\.qkv\..*")


def _detect(source: Source) -> bool:
    return _FIRST in source.tensors and "decoder.conv_in.weight" in source.tensors


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    levels = count_tensors(source, _BLOCK)
    channels = source.shape("encoder.conv_in.weight")[0]
    widths = [source.shape(_BLOCK.replace("{i}", str(i)))[0] for i in range(levels)]
    codebook_size, code_dim = source.shape("quantize.embedding.weight", 2)
    scales = tuple(overrides.get("scales", SCALES_256))
    counts = source.tensors.get("quantize.ema_vocab_hit_SV")
    if counts is not None and counts.shape[0] != len(scales):
        raise ConfigError(
            f"'{source.name}' has {counts.shape[0]} scales, not those {len(scales)} of "
            f"{scales}; add --set scales=N,N,..."
        )
    lowest = f"encoder.down.{levels - 1}.attn.0.qkv.weight" in source.tensors
    networks = TokenizerConfig(
        image_size=scales[-1] << (levels - 1),
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        encoder_blocks=count_tensors(source, "encoder.down.0.block.{i}.conv1.weight"),
        decoder_blocks=count_tensors(source, "decoder.up.0.block.{i}.conv1.weight"),
        attention="lowest" if lowest else "middle",
        groups=overrides.get("groups", 32),
        latent_channels=source.shape("encoder.conv_out.weight")[0],
        codebook_size=codebook_size,
        code_dim=code_dim,
        normalized="none",
    )
    config = MultiScaleTokenizerConfig(
        networks,
        scales,
        count_tensors(source, "quantize.quant_resi.qresi_ls.{i}.weight"),
    )
    rules = (*vq_rules(LAYOUTS["vq-taming"], networks), *RESIDUAL)
    computed = _fused_attention(source, networks)
    return Plan(
        "multi_scale_tokenizer", config, rules, computed=computed, ignored=IGNORED
    )


def _fused_attention(
    source: Source, config: TokenizerConfig
) -> dict[str, ComputedParam]:
    """Queries, keys and values, which are one convolution in the files."""
    levels, places = len(config.multipliers), {}
    for half, level, blocks in (
        ("encoder", "down", config.encoder_blocks),
        ("decoder", "up", config.decoder_blocks),
    ):
        places[f"{half}.mid.attn_1"] = f"{half}/mid/1"
        if config.attention == "lowest":
            lowest = levels - 1 if half == "encoder" else 0
            for j in range(blocks):
                name = f"{half}.{level}.{levels - 1}.attn.{j}"
                places[name] = f"{half}/conv_blocks_{lowest}/attn_{j}"
    result = {}
    for name, path in places.items():
        for i, part in enumerate("qkv"):
            result[f"{path}/{part}/kernel"] = ComputedParam(
                (f"{name}.qkv.weight",), partial(_kernel, i)
            )
            result[f"{path}/{part}/bias"] = ComputedParam(
                (f"{name}.qkv.bias",), partial(_third, i)
            )
    return result


def _third(i: int, x: np.ndarray) -> np.ndarray:
    return np.split(x, 3)[i]


def _kernel(i: int, x: np.ndarray) -> np.ndarray:
    return _third(i, x).transpose(2, 3, 1, 0)


FAMILIES = (Family("vq-var", _detect, _plan),)
