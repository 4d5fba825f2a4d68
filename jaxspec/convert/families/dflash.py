"""DFlash's block drafters, and DSpark's, which add two small heads.

Keys: z-lab/dflash `dflash/model.py`, deepseek-ai/DeepSpec `modeling/dspark`.
"""

from collections import ChainMap
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import DFlashConfig, to_dict
from jaxspec.convert.families.eagle import rotary
from jaxspec.convert.families.layers import mlp
from jaxspec.convert.families.llama import scaling_of
from jaxspec.convert.family import (
    Derived,
    Family,
    Given,
    Outgoing,
    Plan,
    agree_on,
    count,
    heads_of,
    kept,
    numbers,
    only,
    setting,
)
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.stored import Source
from jaxspec.drafters.block_diffusion import DFlash
from jaxspec.errors import ConfigError


def _rules(drafter: DFlash) -> tuple[Rule, ...]:
    turned = rotary(drafter.target)
    matrix, vector = f"heads{turned}", "rotary_vector" if turned else "same"
    theirs, ours = "layers.{i}.", "layers_{i}/"
    return (
        Rule("fc.weight", "project/kernel", "linear"),
        Rule("hidden_norm.weight", "context_norm/scale"),
        Rule("norm.weight", "norm/scale"),
        Rule(f"{theirs}input_layernorm.weight", f"{ours}input_norm/scale"),
        Rule(f"{theirs}post_attention_layernorm.weight", f"{ours}post_norm/scale"),
        Rule(f"{theirs}self_attn.q_proj.weight", f"{ours}query/kernel", matrix),
        Rule(f"{theirs}self_attn.k_proj.weight", f"{ours}key/kernel", matrix),
        Rule(f"{theirs}self_attn.v_proj.weight", f"{ours}value/kernel", "heads"),
        Rule(f"{theirs}self_attn.o_proj.weight", f"{ours}out/kernel", "linear"),
        Rule(f"{theirs}self_attn.q_norm.weight", f"{ours}q_norm/scale", vector),
        Rule(f"{theirs}self_attn.k_norm.weight", f"{ours}k_norm/scale", vector),
        *mlp(theirs, f"{ours}ffn"),
        Rule("markov_head.markov_w1.weight", "markov_in"),
        Rule("markov_head.markov_w2.weight", "markov_out", "linear"),
        Rule("confidence_head.proj.weight", "confidence_out/kernel", "linear"),
        Rule("confidence_head.proj.bias", "confidence_out/bias"),
        # Ours alone: a mask for each place, and the row above.
        Rule("mask_rows", "mask_rows"),
        Rule("above.weight", "above/kernel", "linear"),
    )


def _settings(source: Source) -> Given:
    """The config; what its inner part has comes first."""
    said = source.config
    inner = said.get("dflash_config") or said.get("dspark_config") or {}
    return ChainMap(inner, said)  # pyright: ignore[reportArgumentType]


def _config_of(source: Source, given: Given, target: Checkpoint) -> DFlashConfig:
    of, said = target.config, _settings(source)
    layers = count(source, "layers.{i}.self_attn.q_proj.weight")
    width, joined_width = source.shape("fc.weight")
    listed = said.get("target_layer_ids")
    if isinstance(listed, list) and -1 in listed:
        raise ConfigError(
            f"'{source.name}' reads the embedding (layer -1), which no target offers"
        )
    feature_layers = numbers(
        source,
        given,
        "feature_layers",
        listed,
        wanted=f"which of the target's {of.layers} layers it reads (the first is 0)",
        guess=joined_width // of.width,
    )
    if len(feature_layers) * of.width != joined_width:
        raise ConfigError(
            f"'{source.name}' reads {joined_width} features, but {len(feature_layers)} "
            f"layers of its target have {len(feature_layers) * of.width}: another "
            "target, or other feature layers"
        )
    known = {"attention_bias": (False,), "hidden_act": ("silu", "swish")}
    only(source, said, {**known, "is_causal": (False,)})
    agree_on(
        source,
        said,
        {"num_target_layers": of.layers, "vocab_size": of.vocab_size},
        where="its target",
    )
    windows = said.get("use_sliding_window") or "sliding_attention" in (
        said.get("layer_types") or ()
    )
    if windows:
        raise ConfigError(
            f"'{source.name}' attends within a sliding window, which is not known here"
        )
    if of.rope == "sequence":  # its own config decides; ours turns as the target does
        turns = said.get("rope_parameters") or {}
        base = said.get("rope_theta", turns.get("rope_theta"))
        base = of.rope_base if base is None else float(base)
        if (base, scaling_of(source, said)) != (of.rope_base, of.rope_scaling):
            raise ConfigError(
                f"'{source.name}' turns by other frequencies than its target (base "
                f"{base:g} against {of.rope_base:g}), which is not known here"
            )
    size = source.shape("layers.0.self_attn.q_norm.weight")[0]
    heads = source.shape("layers.0.self_attn.q_proj.weight")[0] // size
    kv_heads = source.shape("layers.0.self_attn.k_proj.weight")[0] // size
    hidden = source.shape("layers.0.mlp.gate_proj.weight")[0]
    found = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "head_dim": size,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
    }
    agree_on(source, said, found)
    block = setting(
        source,
        given,
        "block_size",
        said.get("block_size"),
        wanted="its block size",
        guess=2,
    )
    markov = source.tensors.get("markov_head.markov_w1.weight")
    return DFlashConfig(
        block_size=block,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        head_dim=None if heads * size == width else size,
        ffn_width=hidden,
        norm_eps=said.get("rms_norm_eps", 1e-6),
        feature_layers=tuple(feature_layers),
        causal=False,
        markov_rank=0 if markov is None else markov.shape[1],
        confidence="confidence_head.proj.weight" in source.tensors,
        # DSpark's rows guess the next place, the anchor's too.
        same_place=markov is None,
    )


def _plan(source: Source, given: Given, target: Checkpoint | None) -> Plan:
    assert target is not None
    config = kept(source, DFlashConfig) or _config_of(source, given, target)
    drafter, derived, metadata = DFlash(config, target.config), {}, {}
    if "mask_rows" not in source.tensors:
        # All of DFlash's masks are one token of the target's.
        known = _settings(source).get("mask_token_id")
        mask = setting(source, given, "mask_token", known, wanted="its mask token")
        table = np.asarray(target.params["embedding"]["embedding"])
        if not 0 <= mask < len(table):
            raise ConfigError(
                f"'{source.name}': the mask token {mask} is not one of the target's "
                f"{len(table)}"
            )
        rows = np.broadcast_to(table[mask], (config.block_size - 1, config.width))
        derived["mask_rows"] = Derived((), lambda: rows)
        metadata["mask_token"] = mask
    return Plan(
        "dflash",
        drafter,
        _rules(drafter),
        heads_of(config),
        derived,
        (r".*\.rotary_emb\.inv_freq",),
        metadata,
    )


def _export(checkpoint: Checkpoint) -> Outgoing:
    drafter = checkpoint.config
    if not isinstance(drafter, DFlash):
        raise ConfigError("only a block drafter goes out as DFlash")
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
    left_out, mask = (), checkpoint.metadata.get("mask_token")
    rows = np.asarray(checkpoint.params["mask_rows"])
    if mask is not None and (rows == rows[:1]).all():  # as it came
        config["dflash_config"]["mask_token_id"] = mask
        left_out = ("mask_rows",)
    return Outgoing(_rules(drafter), config, heads_of(c), left_out=left_out)


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
