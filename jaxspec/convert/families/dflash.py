"""DFlash block drafters, and DSpark's, which add a Markov and a confidence head.

Tensor names: z-lab/dflash `dflash/model.py`, deepseek-ai/DeepSpec `modeling/dspark`.
"""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig, to_dict
from jaxspec.convert.families.key_rules import mlp
from jaxspec.convert.families.layer_sizes import layer_sizes
from jaxspec.convert.families.rotary import (
    read_rope_base,
    read_rope_scaling,
    rotary_suffix,
)
from jaxspec.convert.family import (
    ComputedParam,
    ExportPlan,
    Family,
    Overrides,
    Plan,
    heads_of,
)
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors, infer_numbers, infer_setting
from jaxspec.convert.source_config import (
    check_consistent,
    check_supported,
    exported_config,
)
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.errors import ConfigError


def _rules(drafter: DFlash) -> tuple[KeyRule, ...]:
    rotary = rotary_suffix(drafter.target)
    matrix, vector = f"heads{rotary}", "rotary_vector" if rotary else "same"
    source, target = "layers.{i}.", "layers_{i}/"
    return (
        KeyRule("fc.weight", "project/kernel", "linear"),
        KeyRule("hidden_norm.weight", "context_norm/scale"),
        KeyRule("norm.weight", "norm/scale"),
        KeyRule(f"{source}input_layernorm.weight", f"{target}input_norm/scale"),
        KeyRule(f"{source}post_attention_layernorm.weight", f"{target}post_norm/scale"),
        KeyRule(f"{source}self_attn.q_proj.weight", f"{target}query/kernel", matrix),
        KeyRule(f"{source}self_attn.k_proj.weight", f"{target}key/kernel", matrix),
        KeyRule(f"{source}self_attn.v_proj.weight", f"{target}value/kernel", "heads"),
        KeyRule(f"{source}self_attn.o_proj.weight", f"{target}out/kernel", "linear"),
        KeyRule(f"{source}self_attn.q_norm.weight", f"{target}q_norm/scale", vector),
        KeyRule(f"{source}self_attn.k_norm.weight", f"{target}k_norm/scale", vector),
        *mlp(source, f"{target}ffn"),
        KeyRule("markov_head.markov_w1.weight", "markov_in"),
        KeyRule("markov_head.markov_w2.weight", "markov_out", "linear"),
        KeyRule("confidence_head.proj.weight", "confidence_out/kernel", "linear"),
        KeyRule("confidence_head.proj.bias", "confidence_out/bias"),
        # Extensions of this library: one mask vector per position of the block, and
        # the tokens of the image row above.
        KeyRule("mask_rows", "mask_rows"),
        KeyRule("above.weight", "above/kernel", "linear"),
    )


def _merged_config(source: Source) -> Mapping[str, Any]:
    """Returns the config; entries of its DFlash or DSpark section take precedence."""
    source_config = source.config
    section = source_config.get("dflash_config") or source_config.get("dspark_config")
    return ChainMap(section or {}, source_config)  # pyright: ignore[reportArgumentType]


def _feature_layers(
    source: Source, overrides: Overrides, target: TransformerConfig, features_width: int
) -> tuple[int, ...]:
    """Infers the layers of the target whose outputs the drafter reads.

    Raises:
      MissingSettings: they are unknown.
      ConfigError: they do not fit the target or the tensors.
    """
    layer_ids = _merged_config(source).get("target_layer_ids")
    if isinstance(layer_ids, list) and -1 in layer_ids:
        raise ConfigError(
            f"'{source.name}' reads the embedding (layer -1), which targets do not "
            "return"
        )
    feature_layers = infer_numbers(
        source,
        overrides,
        "feature_layers",
        layer_ids,
        description="the layers whose features it reads (of the target's "
        f"{target.layers} layers; the first is 0)",
        length=features_width // target.width,
    )
    offered = len(feature_layers) * target.width
    if offered != features_width:
        raise ConfigError(
            f"'{source.name}' reads {features_width} features, but "
            f"{len(feature_layers)} layers of its target have {offered}: check the "
            "target and the feature layers"
        )
    return feature_layers


def _check_config(source: Source, target: TransformerConfig) -> None:
    """Refuses a config of another target, or one that is not supported.

    Raises:
      ConfigError: the target has other sizes or rotary frequencies, or an entry has no
        counterpart in this library.
    """
    source_config = _merged_config(source)
    supported = {
        "attention_bias": (False,),
        "hidden_act": ("silu", "swish"),
        "is_causal": (False,),
    }
    check_supported(source, source_config, supported)
    expected = {"num_target_layers": target.layers, "vocab_size": target.vocab_size}
    check_consistent(source, source_config, expected, "its target")
    sliding = source_config.get("use_sliding_window") or "sliding_attention" in (
        source_config.get("layer_types") or ()
    )
    if sliding:
        raise ConfigError(
            f"'{source.name}' has sliding window attention, which is not supported"
        )
    if target.rope == "sequence":
        # Released drafters have rotary settings of their own; ours use the target's.
        base = read_rope_base(source_config)
        base = target.rope_base if base is None else float(base)
        settings = base, read_rope_scaling(source, source_config)
        if settings != (target.rope_base, target.rope_scaling):
            raise ConfigError(
                f"'{source.name}' has other rotary frequencies than its target (base "
                f"{base:g}, not {target.rope_base:g}), which is not supported"
            )


def _infer_config(
    source: Source, overrides: Overrides, target: TransformerConfig
) -> DFlashConfig:
    """Infers the configuration from shapes, `config.json` and the user's settings."""
    source_config = _merged_config(source)
    layers = count_tensors(source, "layers.{i}.self_attn.q_proj.weight")
    width, features_width = source.shape("fc.weight")
    feature_layers = _feature_layers(source, overrides, target, features_width)
    _check_config(source, target)
    head_size = source.shape("layers.0.self_attn.q_norm.weight")[0]
    sizes = layer_sizes(source, "layers.0.", head_size=head_size)
    expected = {
        "hidden_size": width,
        "intermediate_size": sizes.ffn_width,
        "head_dim": head_size,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "num_hidden_layers": layers,
    }
    check_consistent(source, source_config, expected)
    block_size = infer_setting(
        source,
        overrides,
        "block_size",
        source_config.get("block_size"),
        description="its block size",
        placeholder=2,
    )
    markov_in = source.tensors.get("markov_head.markov_w1.weight")
    return DFlashConfig(
        block_size=block_size,
        layers=layers,
        width=width,
        **sizes.config_args(width),
        norm_eps=source_config.get("rms_norm_eps", 1e-6),
        feature_layers=feature_layers,
        causal=False,
        markov_rank=0 if markov_in is None else markov_in.shape[1],
        confidence="confidence_head.proj.weight" in source.tensors,
        # DSpark's queries predict the next position; DFlash's predict their own.
        same_place=markov_in is None,
    )


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    assert target is not None
    config = exported_config(source, DFlashConfig)
    config = config or _infer_config(source, overrides, target.config)
    drafter, computed, metadata = DFlash(config, target.config), {}, {}
    if "mask_rows" not in source.tensors:
        # DFlash masks all positions with one token of the target.
        mask = infer_setting(
            source,
            overrides,
            "mask_token",
            _merged_config(source).get("mask_token_id"),
            description="its mask token",
        )
        table = np.asarray(target.params["embedding"]["embedding"])
        if not 0 <= mask < len(table):
            raise ConfigError(
                f"'{source.name}': the mask token {mask} is not one of the target's "
                f"{len(table)}"
            )
        shape = (config.block_size - 1, config.width)
        masks = np.broadcast_to(table[mask], shape)
        computed["mask_rows"] = ComputedParam((), lambda: masks)
        metadata["mask_token"] = mask
    return Plan(
        "dflash",
        config,
        _rules(drafter),
        heads_of(config),
        computed,
        (r".*\.rotary_emb\.inv_freq",),
        metadata,
        target=target.config,
    )


def _export(checkpoint: Checkpoint) -> ExportPlan:
    drafter = checkpoint.model
    if not isinstance(drafter, DFlash):
        raise ConfigError("only DFlash block drafters can be exported as DFlash")
    c = drafter.config
    config: dict[str, Any] = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "block_size": c.block_size,
        "hidden_size": c.width,
        "intermediate_size": c.ffn_width,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_size,
        "num_hidden_layers": c.layers,
        "num_target_layers": drafter.target.layers,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": drafter.target.rope_base,
        "vocab_size": drafter.target.vocab_size,
        "dflash_config": {"target_layer_ids": list(c.feature_layers)},
        "jaxspec": to_dict(c),
    }
    omitted, mask = (), checkpoint.metadata.get("mask_token")
    masks = np.asarray(checkpoint.params["mask_rows"])
    if mask is not None and (masks == masks[:1]).all():  # still that token
        config["dflash_config"]["mask_token_id"] = mask
        omitted = ("mask_rows",)
    return ExportPlan(_rules(drafter), config, heads_of(c), omitted=omitted)


FAMILIES = (
    Family(
        "dflash",
        lambda s: (
            "fc.weight" in s.tensors
            and "hidden_norm.weight" in s.tensors
            and "layers.0.self_attn.q_norm.weight" in s.tensors
        ),
        _plan,
        drafter=True,
        export=_export,
    ),
)
