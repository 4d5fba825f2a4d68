"""FlexTok: a row of tokens, and a flow to the latents of an autoencoder.

Tensor names: apple/ml-flextok `flextok/model` (arXiv 2502.13967), whose two networks
are chains of named parts; the autoencoder is the `AutoencoderKL` of diffusers.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import KLTokenizerConfig
from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.config.one_d import ViTConfig
from jaxspec.convert.families.kl import FAMILIES as AUTOENCODERS
from jaxspec.convert.family import ComputedParam, Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors
from jaxspec.convert.transforms import Heads
from jaxspec.errors import ConfigError, DataError
from jaxspec.nn.scalar import fsq_values, product_codebook
from jaxspec.tokenizers.flow.networks import grid_positions

_HEAD_SIZE = 64
_LEVELS = (8, 8, 8, 5, 5, 5)  # of all releases
_VAE = "vae.vae."
_ENCODER, _DECODER = "encoder.module_dict.", "decoder.module_dict."
_QUERIES = f"{_ENCODER}enc_register_module.registers"
_POSITIONS = f"{_DECODER}dec_registers_posemb_module.posembs"
_GRIDS = (
    f"{_ENCODER}enc_posemb_module.posembs",
    f"{_DECODER}dec_patches_posemb_module.posembs",
)
# Settings that no tensor shows, by the end of their name; others are not supported.
_FIXED: dict[str, dict[str, Any]] = {
    "enc_seq_packer": {"mask_mode": "causal_last"},
    "dec_seq_packer": {"mask_mode": "full"},
    "_transformer": {"qk_norm": True, "gated_mlp": True},
    "enc_to_latents": {"use_mup_readout": False},
    "dec_to_patches": {"use_mup_readout": False},
    "_posemb_module": {"posemb_scaling": "absolute"},
    "dec_time_embedder": {"frequency_embedding_size": 256},
}
# Largest time of released models, and that of files that name none.
_LAST_TIME, _OTHER_LAST_TIME = 1.0, 1000.0


def _linear(source: str, target: str) -> tuple[KeyRule, ...]:
    return (
        KeyRule(f"{source}.weight", f"{target}/kernel", "linear"),
        KeyRule(f"{source}.bias", f"{target}/bias"),
    )


def _layers(source: str, target: str) -> tuple[KeyRule, ...]:
    source, target = f"{source}.blocks.{{i}}", f"{target}/layers_{{i}}"
    names = {"attn.proj": "out", "mlp.fc2": "mlp/down"}
    return tuple(
        KeyRule(f"{source}.{theirs}.weight", f"{target}/{ours}/kernel", "linear")
        for theirs, ours in names.items()
    )


RULES = (
    *_linear(f"{_ENCODER}enc_patch_emb.patch_proj", "encoder/patches_in"),
    KeyRule(_QUERIES, "encoder/queries"),
    *_layers(f"{_ENCODER}enc_transformer", "encoder"),
    *_linear(f"{_ENCODER}enc_to_latents.proj", "encoder/out"),
    *_linear(f"{_DECODER}dec_from_latents.proj", "flow/vectors_in"),
    KeyRule(f"{_DECODER}dec_nested_dropout.dropout_mask_token", "flow/hidden"),
    KeyRule(f"{_DECODER}dec_latent_dropout.nullcond", "flow/null"),
    *_linear(f"{_DECODER}dec_noise_patch_emb.patch_proj", "flow/patches_in"),
    *_linear(f"{_DECODER}dec_time_embedder.mlp.0", "flow/time_in"),
    *_linear(f"{_DECODER}dec_time_embedder.mlp.2", "flow/time_out"),
    *_layers(f"{_DECODER}dec_transformer", "flow"),
    *_linear(
        f"{_DECODER}dec_transformer.blocks.{{i}}.adaLN_modulation.1",
        "flow/layers_{i}/modulation",
    ),
    *_linear(f"{_DECODER}dec_to_patches.adaLN_modulation.1", "flow/modulation"),
    *_linear(f"{_DECODER}dec_to_patches.proj", "flow/out"),
)


def _detect(source: Source) -> bool:
    return {_QUERIES, _POSITIONS} <= set(source.tensors)


def _section(source: Source, name: str) -> Mapping[str, Any]:
    value = source.config.get(name)
    return value if isinstance(value, Mapping) else {}


def _parts(source: Source) -> dict[str, Mapping[str, Any]]:
    """Settings of the parts of both networks, by name; empty without any."""
    result = {}
    for half in ("encoder", "decoder"):
        parts = _section(source, half).get("module_dict")
        for name, part in parts.items() if isinstance(parts, Mapping) else ():
            if isinstance(part, Mapping):
                result[name] = part
    return result


def _check_parts(source: Source) -> None:
    """Refuses networks that compute something else than the released ones.

    Raises:
      ConfigError: the settings name another kind of attention, layer or head.
    """
    for name, part in _parts(source).items():
        for ending, expected in _FIXED.items():
            for key, value in expected.items() if name.endswith(ending) else ():
                if part.get(key, value) != value:
                    raise ConfigError(
                        f"'{source.name}': {name}.{key}={part[key]!r} is not "
                        f"supported, only {value!r}"
                    )
        layer = part.get("act_layer")
        names = layer.values() if isinstance(layer, Mapping) else [layer]
        if layer is not None and not any("SiLU" in str(x) for x in names):
            raise ConfigError(
                f"'{source.name}': {name}.act_layer={layer!r} is not supported, only "
                "SiLU"
            )


def _time_scale(source: Source) -> float:
    """Factor of times, which are from 0 to 1, before their sinusoids."""
    embedder = _parts(source).get("dec_time_embedder")
    if embedder is None:
        return 1000.0 / _LAST_TIME
    return 1000.0 / float(embedder.get("max_timestep", _OTHER_LAST_TIME))


def _check_grid(source: Source, name: str) -> int:
    """Patches along each side of a network's grid, whose positions are sinusoids.

    Raises:
      DataError: the positions in the file are others.
    """
    _, width, side, other = source.shape(name, 4)
    found = np.asarray(source.tensors[name].read(), np.float32)[0]
    known = side == other and width % 4 == 0
    if known:
        expected = grid_positions(side, width).T.reshape(found.shape)
        known = np.allclose(found, expected, atol=1e-2)  # also in bfloat16
    if not known:
        raise DataError(
            f"'{source.name}': {name} holds no sinusoids of a square grid; only those "
            "are supported"
        )
    return side


def _vit(source: Source, name: str, width: int, overrides: Overrides) -> ViTConfig:
    layers = count_tensors(source, f"{name}.blocks.{{i}}.attn.wq.weight")
    size = _parts(source).get(name.rpartition(".")[2], {}).get("head_dim", _HEAD_SIZE)
    heads = overrides.get("heads", max(width // size, 1))
    return ViTConfig(layers, width, heads)


def _autoencoder(source: Source, overrides: Overrides, side: int) -> Plan:
    """Plan of the autoencoder in the file.

    Raises:
      ConfigError: the factor of its latents is unknown.
    """
    settings = _section(source, "vae")
    scale = overrides.get("scale", settings.get("scaling_factor"))
    if scale is None:
        raise ConfigError(
            f"'{source.name}': the factor of the latents is in no file; add --set "
            "scale=NUMBER"
        )
    tensors = {
        name.removeprefix(_VAE): x
        for name, x in source.tensors.items()
        if name.startswith(_VAE)
    }
    alone = replace(source, tensors=tensors, config={})
    sizes = {"image_size": side, "scale": scale}
    if (groups := overrides.get("groups")) is not None:
        sizes["groups"] = groups
    return AUTOENCODERS[0].plan(alone, sizes, None)


def _levels(source: Source, overrides: Overrides, channels: int) -> tuple[int, ...]:
    """Values of each channel of a token.

    Raises:
      ConfigError: they are unknown, or of another number of channels.
    """
    levels = overrides.get("levels", _section(source, "regularizer").get("levels"))
    if levels is None and channels == len(_LEVELS):
        levels = _LEVELS
    if (
        not isinstance(levels, list | tuple)
        or len(levels) != channels
        or any(type(count) is not int for count in levels)
    ):
        raise ConfigError(
            f"'{source.name}': tokens have {channels} channels, and levels={levels}; "
            "add --set levels=N,N,..."
        )
    return tuple(levels)


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    _check_parts(source)
    if not any(name.startswith(_VAE) for name in source.tensors):
        raise DataError(
            f"'{source.name}' has no autoencoder ({_VAE}...); FlexTok's networks see "
            "its latents, and are converted together with it"
        )
    patches, other = (_check_grid(source, name) for name in _GRIDS)
    length, width = source.shape(_QUERIES, 2)
    flow_width = source.shape(f"{_DECODER}dec_nested_dropout.dropout_mask_token", 1)[0]
    channels = source.shape(f"{_ENCODER}enc_to_latents.proj.weight", 2)[0]
    inputs = source.shape(f"{_ENCODER}enc_patch_emb.patch_proj.weight", 2)[1]
    depth = source.shape(f"{_VAE}post_quant_conv.weight", 4)[1]
    patch = round((inputs / depth) ** 0.5)
    if patches != other or patch * patch * depth != inputs:
        raise DataError(
            f"'{source.name}': grids of {patches} and {other} patches of {inputs} "
            f"numbers do not fit latents of {depth} channels"
        )
    halves = count_tensors(
        source, f"{_VAE}encoder.down_blocks.{{i}}.downsamplers.0.conv.weight"
    )
    plan = _autoencoder(source, overrides, patches * patch * 2**halves)
    assert isinstance(plan.config, KLTokenizerConfig)
    modulation = f"{_DECODER}dec_transformer.blocks.0.adaLN_modulation.1.bias"
    config = FlowTokenizerConfig(
        image_size=plan.config.image_size,
        patch_size=patch,
        length=length,
        levels=_levels(source, overrides, channels),
        encoder=_vit(source, f"{_ENCODER}enc_transformer", width, overrides),
        decoder=_vit(source, f"{_DECODER}dec_transformer", flow_width, overrides),
        latents=plan.config,
        time_scale=_time_scale(source),
        token_modulation=source.shape(modulation, 1)[0] == 12 * flow_width,
    )
    within = tuple(
        replace(rule, source=_VAE + rule.source, target=f"latents/{rule.target}")
        for rule in plan.rules
    )
    return Plan(
        "flow_tokenizer",
        config,
        (*RULES, *within),
        heads=Heads(),
        computed=_computed(config),
        ignored=(*(name.replace(".", r"\.") for name in _GRIDS), r"vae\.logvar"),
    )


def _computed(config: FlowTokenizerConfig) -> dict[str, ComputedParam]:
    book = product_codebook(fsq_values(config.levels))
    result = {
        "codebook": ComputedParam((), lambda: book),
        "flow/positions": ComputedParam((_POSITIONS,), lambda x: x[0, 0].T),
    }
    for source, target, vit in (
        (f"{_ENCODER}enc_transformer", "encoder", config.encoder),
        (f"{_DECODER}dec_transformer", "flow", config.decoder),
    ):
        split = _split_into(vit.heads)
        for i in range(vit.layers):
            block, layer = f"{source}.blocks.{i}", f"{target}/layers_{i}"
            for name in "qkv":
                result[f"{layer}/{name}/kernel"] = ComputedParam(
                    (f"{block}.attn.w{name}.weight",), split
                )
            gate, up = f"{block}.mlp.fc1.weight", f"{block}.mlp.fc3.weight"
            result[f"{layer}/mlp/gate_up/kernel"] = ComputedParam((gate, up), _gate_up)
    return result


def _split_into(heads: int):
    """Kernel [D, H, F] of a matrix [(H F), D]."""
    return lambda x: x.T.reshape(x.shape[1], heads, -1)


def _gate_up(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Kernel [D, 2, width]."""
    return np.stack([gate.T, up.T], axis=1)


FAMILIES = (Family("flextok", _detect, _plan),)
