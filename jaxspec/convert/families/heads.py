"""Medusa and Hydra heads.

Tensor names: FasterDecoding/Medusa `model/medusa_model.py`, zankner/Hydra
`hydra_heads/`.
"""

import re

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import MedusaConfig
from jaxspec.convert.families.embeddings import has_own_embedding
from jaxspec.convert.families.key_rules import attention, mlp
from jaxspec.convert.family import Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors, infer_setting
from jaxspec.convert.transforms import Heads
from jaxspec.drafters.parallel_heads import Medusa
from jaxspec.errors import ConfigError


def _plan_medusa(
    source: Source, overrides: Overrides, target: Checkpoint | None
) -> Plan:
    assert target is not None
    root = "medusa_head." if "medusa_head.0.0.linear.weight" in source.tensors else ""
    heads = count_tensors(source, f"{root}{{i}}.0.linear.weight")
    blocks = count_tensors(source, f"{root}0.{{i}}.linear.weight")
    config = MedusaConfig(
        heads, target.config.width, blocks, own_output=True, norm_eps=1e-6
    )
    rules = []
    for i in range(heads):
        for j in range(blocks):
            name, path = f"{root}{i}.{j}.linear", f"head_{i}_block_{j}/change"
            rules.append(KeyRule(f"{name}.weight", f"{path}/kernel", "linear"))
            rules.append(KeyRule(f"{name}.bias", f"{path}/bias"))
        name = f"{root}{i}.{blocks}.weight"
        rules.append(KeyRule(name, "output", "row_linear", i, heads, axis=0))
    return Plan("medusa", Medusa(config, target.config), tuple(rules))


def _plan_hydra(
    source: Source, overrides: Overrides, target: Checkpoint | None
) -> Plan:
    assert target is not None
    prefix = "prefix_embeding_layer.layers.0."
    has_prefix_layer = f"{prefix}self_attn.q_proj.weight" in source.tensors
    # Hydra++ has dropout modules between the blocks, which are numbered, too.
    first, step = (
        (1, 2) if "hydra_mlp.0.1.res_connection.weight" in source.tensors else (0, 1)
    )
    heads = count_tensors(source, f"hydra_mlp.{{i}}.{first}.linear.weight")
    blocks = 0
    while f"hydra_mlp.0.{first + step * blocks}.linear.weight" in source.tensors:
        blocks += 1
    output = "hydra_lm_head.{i}.1" if step == 2 else "hydra_lm_head.{i}"
    # The state dict includes the target's embedding, which the module references.
    table = "input_embed_fn.weight"
    if has_own_embedding(source, table, target, target.config.width):
        raise ConfigError(
            f"'{source.name}': {table} is not the embedding of its target; name the "
            "target that it was trained for with --target"
        )
    prefix_heads = 0
    if has_prefix_layer:
        prefix_heads = infer_setting(
            source,
            overrides,
            "heads",
            source.config.get("num_attention_heads"),
            target.config.heads,
            description="the number of heads of its prefix layer",
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
        prefix_heads=prefix_heads,
        prefix_ffn_width=source.shape(f"{prefix}mlp.gate_proj.weight")[0]
        if has_prefix_layer
        else 2048,
        prefix_out_norm=has_prefix_layer,
        norm_eps=source.config.get("rms_norm_eps", 1e-6),
    )
    rules = []
    for i in range(heads):
        for j in range(blocks):
            name = f"hydra_mlp.{i}.{first + step * j}.linear"
            path = f"head_{i}_block_{j}/change"
            rules.append(KeyRule(f"{name}.weight", f"{path}/kernel", "linear"))
            rules.append(KeyRule(f"{name}.bias", f"{path}/bias"))
        name = f"hydra_mlp.{i}.{first}.res_connection"
        path = f"head_{i}_block_0/narrow"
        rules.append(KeyRule(f"{name}.weight", f"{path}/kernel", "linear"))
        rules.append(KeyRule(f"{name}.bias", f"{path}/bias"))
        name = output.replace("{i}", str(i))
        rules.append(
            KeyRule(f"{name}.weight", "output", "row_linear", i, heads, axis=0)
        )
        rules.append(KeyRule(f"{name}.bias", "output_bias", "row", i, heads, axis=0))
    if has_prefix_layer:
        rules += [
            *attention(prefix, "prefix_attention"),
            KeyRule(f"{prefix}input_layernorm.weight", "prefix_norm/scale"),
            KeyRule(
                f"{prefix}post_attention_layernorm.weight", "prefix_ffn_norm/scale"
            ),
            *mlp(prefix, "prefix_ffn"),
            KeyRule("prefix_embeding_layer.norm.weight", "prefix_out_norm/scale"),
        ]
    return Plan(
        "medusa",
        Medusa(config, target.config),
        tuple(rules),
        Heads(config.width // max(prefix_heads, 1), max(prefix_heads, 1)),
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
            f"{root}0.0.linear.weight" in s.tensors for root in ("", "medusa_head.")
        ),
        _plan_medusa,
        drafter=True,
    ),
    Family(
        "hydra",
        lambda s: any(name.startswith("hydra_mlp.") for name in s.tensors),
        _plan_hydra,
        drafter=True,
    ),
)
