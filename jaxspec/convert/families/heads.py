"""Medusa's and Hydra's heads.

Keys: FasterDecoding/Medusa `model/medusa_model.py`, zankner/Hydra `hydra_heads/`.
"""

import re

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import MedusaConfig
from jaxspec.convert.families.layers import attention, mlp
from jaxspec.convert.families.tables import own_table
from jaxspec.convert.family import Family, Given, Plan, count, setting
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.stored import Source
from jaxspec.convert.transforms import Heads
from jaxspec.drafters.parallel_heads import Medusa
from jaxspec.errors import ConfigError


def _medusa(source: Source, given: Given, target: Checkpoint | None) -> Plan:
    assert target is not None
    root = "medusa_head." if "medusa_head.0.0.linear.weight" in source.tensors else ""
    heads = count(source, f"{root}{{i}}.0.linear.weight")
    blocks = count(source, f"{root}0.{{i}}.linear.weight")
    config = MedusaConfig(
        heads, target.config.width, blocks, own_output=True, norm_eps=1e-6
    )
    rules = []
    for i in range(heads):
        for j in range(blocks):
            theirs, ours = f"{root}{i}.{j}.linear", f"head_{i}_block_{j}/change"
            rules.append(Rule(f"{theirs}.weight", f"{ours}/kernel", "linear"))
            rules.append(Rule(f"{theirs}.bias", f"{ours}/bias"))
        name = f"{root}{i}.{blocks}.weight"
        rules.append(Rule(name, "output", "row_linear", i, heads, axis=0))
    drafter = Medusa(config, target.config)
    return Plan("medusa", drafter, tuple(rules))


def _hydra(source: Source, given: Given, target: Checkpoint | None) -> Plan:
    assert target is not None
    # With a prefix layer there is dropout between the blocks, which takes a number.
    prefix = "prefix_embeding_layer.layers.0."
    deep = f"{prefix}self_attn.q_proj.weight" in source.tensors
    first, step = (
        (1, 2) if "hydra_mlp.0.1.res_connection.weight" in source.tensors else (0, 1)
    )
    heads = count(source, f"hydra_mlp.{{i}}.{first}.linear.weight")
    blocks = 0
    while f"hydra_mlp.0.{first + step * blocks}.linear.weight" in source.tensors:
        blocks += 1
    output = "hydra_lm_head.{i}.1" if step == 2 else "hydra_lm_head.{i}"
    # The module registers the function that embeds tokens: its target's.
    table = "input_embed_fn.weight"
    if own_table(source, table, target, target.config.width):
        raise ConfigError(
            f"'{source.name}': {table} is not the embedding of its target; name the "
            "target that it was trained for with --target"
        )
    attending = 0
    if deep:
        attending = setting(
            source,
            given,
            "heads",
            source.config.get("num_attention_heads"),
            target.config.heads,
            wanted="the heads of its prefix layer",
        )
    narrow = f"hydra_mlp.0.{first}.res_connection"
    config = MedusaConfig(
        heads,
        target.config.width,
        blocks,
        sequential=True,
        own_output=True,
        output_bias=output.replace("{i}", "0") + ".bias" in source.tensors,
        narrow_bias=narrow + ".bias" in source.tensors,
        prefix_heads=attending,
        prefix_ffn_width=source.shape(f"{prefix}mlp.gate_proj.weight")[0]
        if deep
        else 2048,
        prefix_out_norm=deep,
        norm_eps=source.config.get("rms_norm_eps", 1e-6),
    )
    rules = []
    for i in range(heads):
        for j in range(blocks):
            theirs = f"hydra_mlp.{i}.{first + step * j}"
            ours = f"head_{i}_block_{j}"
            rules.append(
                Rule(f"{theirs}.linear.weight", f"{ours}/change/kernel", "linear")
            )
            rules.append(Rule(f"{theirs}.linear.bias", f"{ours}/change/bias"))
        theirs, ours = (
            f"hydra_mlp.{i}.{first}.res_connection",
            f"head_{i}_block_0/narrow",
        )
        rules.append(Rule(f"{theirs}.weight", f"{ours}/kernel", "linear"))
        rules.append(Rule(f"{theirs}.bias", f"{ours}/bias"))
        name = output.replace("{i}", str(i))
        rules.append(Rule(f"{name}.weight", "output", "row_linear", i, heads, axis=0))
        rules.append(Rule(f"{name}.bias", "output_bias", "row", i, heads, axis=0))
    if deep:
        rules += [
            *attention(prefix, "prefix_attention"),
            Rule(f"{prefix}input_layernorm.weight", "prefix_norm/scale"),
            Rule(f"{prefix}post_attention_layernorm.weight", "prefix_ffn_norm/scale"),
            *mlp(prefix, "prefix_ffn"),
            Rule("prefix_embeding_layer.norm.weight", "prefix_out_norm/scale"),
        ]
    return Plan(
        "medusa",
        Medusa(config, target.config),
        tuple(rules),
        Heads(config.width // max(attending, 1), max(attending, 1)),
        ignored=(
            r".*\.rotary_emb\.inv_freq",
            r"prefix_embeding_layer\.embed_tokens\..*",
            re.escape(table),
        ),
    )


FAMILIES = (
    Family(
        "medusa",
        lambda s: any(
            f"{r}0.0.linear.weight" in s.tensors for r in ("", "medusa_head.")
        ),
        _medusa,
        drafter=True,
    ),
    Family(
        "hydra",
        lambda s: any(name.startswith("hydra_mlp.") for name in s.tensors),
        _hydra,
        drafter=True,
    ),
)
