"""DFlash's block drafters, and DSpark's, which add two small heads.

Keys: z-lab/dflash `dflash/model.py`, deepseek-ai/DeepSpec `modeling/dspark`.
"""

from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import BlockDiffusionConfig, to_dict
from jaxspec.convert.families.eagle import rotary
from jaxspec.convert.families.layers import mlp
from jaxspec.convert.families.llama import scaling_of
from jaxspec.convert.family import (
    Derived,
    Family,
    Given,
    Outgoing,
    Plan,
    agree,
    count,
    heads_of,
    kept,
    setting,
)
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.stored import Source
from jaxspec.drafters.block_diffusion import BlockDiffusion
from jaxspec.errors import ConfigError


def released_taps(layers: int, number: int) -> tuple[int, ...]:
    """The layers that DFlash taps where its config does not list them."""
    if number == 1:
        return (layers // 2,)
    return tuple(round(1 + i * (layers - 4) / (number - 1)) for i in range(number))


def _rules(drafter: BlockDiffusion) -> tuple[Rule, ...]:
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


def _config_of(
    source: Source, given: Given, target: Checkpoint
) -> BlockDiffusionConfig:
    of, said = target.config, source.config
    more = said.get("dflash_config", said.get("dspark_config", {}))
    layers = count(source, "layers.{i}.self_attn.q_proj.weight")
    width, joined_width = source.shape("fc.weight")
    taps = given.get("taps") or more.get("target_layer_ids")
    taps = taps or released_taps(of.layers, joined_width // of.width)
    taps = (taps,) if isinstance(taps, int) else taps
    windows = said.get("use_sliding_window") or "sliding_attention" in said.get(
        "layer_types", ()
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
    if min(taps) < 0:
        raise ConfigError(
            f"'{source.name}' taps the embedding (layer -1), which is not known here"
        )
    size = source.shape("layers.0.self_attn.q_norm.weight")[0]
    heads = source.shape("layers.0.self_attn.q_proj.weight")[0] // size
    kv_heads = source.shape("layers.0.self_attn.k_proj.weight")[0] // size
    agree(source, "num_attention_heads", said.get("num_attention_heads"), heads)
    agree(source, "num_hidden_layers", said.get("num_hidden_layers"), layers)
    block = setting(
        source, given, "block_size", said.get("block_size"), wanted="its block size"
    )
    markov = source.tensors.get("markov_head.markov_w1.weight")
    return BlockDiffusionConfig(
        block_size=block,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        head_dim=None if heads * size == width else size,
        ffn_width=source.shape("layers.0.mlp.gate_proj.weight")[0],
        norm_eps=said.get("rms_norm_eps", 1e-6),
        taps=tuple(taps),
        causal=False,
        markov_rank=0 if markov is None else markov.shape[1],
        confidence="confidence_head.proj.weight" in source.tensors,
        # DSpark's rows guess the next place, the anchor's too.
        same_place=markov is None,
    )


def _plan(source: Source, given: Given, target: Checkpoint | None) -> Plan:
    assert target is not None
    config = kept(source, BlockDiffusionConfig) or _config_of(source, given, target)
    drafter, derived, about = BlockDiffusion(config, target.config), {}, {}
    if "mask_rows" not in source.tensors:
        # All of DFlash's masks are one token of the target's.
        said = source.config
        more = said.get("dflash_config", said.get("dspark_config", {}))
        known = more.get("mask_token_id", said.get("mask_token_id"))
        mask = setting(source, given, "mask_token", known, wanted="its mask token")
        table = np.asarray(target.params["embedding"]["embedding"])
        if not 0 <= mask < len(table):
            raise ConfigError(
                f"'{source.name}': the mask token {mask} is not one of the target's "
                f"{len(table)}"
            )
        rows = np.broadcast_to(table[mask], (config.block_size - 1, config.width))
        derived["mask_rows"] = Derived((), lambda: rows)
        about["mask_token"] = mask
    return Plan(
        "block_diffusion",
        drafter,
        _rules(drafter),
        heads_of(config),
        derived,
        (r".*\.rotary_emb\.inv_freq",),
        about,
    )


def _export(checkpoint: Checkpoint) -> Outgoing:
    drafter = checkpoint.config
    if not isinstance(drafter, BlockDiffusion):
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
        "dflash_config": {"target_layer_ids": list(c.taps)},
        "jaxspec": to_dict(c),
    }
    left_out, mask = (), checkpoint.about.get("mask_token")
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
