"""Hydra heads, and the prefix layer of Hydra++.

Tensor names: zankner/Hydra `hydra_heads/`.
"""

import re
from dataclasses import dataclass

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig
from jaxspec.convert.families.embeddings import has_own_embedding
from jaxspec.convert.families.key_rules import attention, mlp
from jaxspec.convert.family import Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors, infer_setting
from jaxspec.convert.transforms import Heads
from jaxspec.drafters.medusa.network import MedusaConfig
from jaxspec.errors import ConfigError

# The state dict includes the target's embedding, which the module references.
EMBEDDING = "input_embed_fn.weight"
PREFIX = "prefix_embeding_layer."
PREFIX_LAYER = PREFIX + "layers.0."


@dataclass(frozen=True)
class HeadNames:
    """Tensor names of the heads.

    Attributes:
      first: number of the first block of a head.
      step: difference between the numbers of consecutive blocks. Hydra++ has dropout
        modules between the blocks, which are numbered, too.
      output: name of the output layer of head `{i}`.
    """

    first: int
    step: int
    output: str

    def block(self, head: int | str, block: int) -> str:
        """Returns the name of a block's linear layer."""
        return f"hydra_mlp.{head}.{self.first + self.step * block}.linear"

    def narrow(self, head: int) -> str:
        """Returns the name of the residual connection of a head's first block."""
        return f"hydra_mlp.{head}.{self.first}.res_connection"

    def output_layer(self, head: int) -> str:
        """Returns the name of a head's output layer."""
        return self.output.replace("{i}", str(head))


HYDRA = HeadNames(0, 1, "hydra_lm_head.{i}")
HYDRA_PLUS = HeadNames(1, 2, "hydra_lm_head.{i}.1")


def _infer_config(
    source: Source, overrides: Overrides, target: TransformerConfig, names: HeadNames
) -> MedusaConfig:
    has_prefix_layer = f"{PREFIX_LAYER}self_attn.q_proj.weight" in source.tensors
    blocks = 0
    while names.block(0, blocks) + ".weight" in source.tensors:
        blocks += 1
    prefix_heads, prefix_ffn_width = 0, 2048
    if has_prefix_layer:
        prefix_heads = infer_setting(
            source,
            overrides,
            "heads",
            source.config.get("num_attention_heads"),
            target.heads,
            description="the number of heads of its prefix layer",
        )
        prefix_ffn_width = source.shape(f"{PREFIX_LAYER}mlp.gate_proj.weight")[0]
    return MedusaConfig(
        count_tensors(source, names.block("{i}", 0) + ".weight"),
        target.width,
        blocks,
        sequential=True,
        own_output=True,
        output_bias=names.output_layer(0) + ".bias" in source.tensors,
        narrow_bias=names.narrow(0) + ".bias" in source.tensors,
        prefix_heads=prefix_heads,
        prefix_ffn_width=prefix_ffn_width,
        prefix_out_norm=has_prefix_layer,
        norm_eps=source.config.get("rms_norm_eps", 1e-6),
    )


def _rules(config: MedusaConfig, names: HeadNames) -> tuple[KeyRule, ...]:
    heads, rules = config.heads, []
    for i in range(heads):
        for j in range(config.blocks):
            name, path = names.block(i, j), f"head_{i}_block_{j}/change"
            rules.append(KeyRule(f"{name}.weight", f"{path}/kernel", "linear"))
            rules.append(KeyRule(f"{name}.bias", f"{path}/bias"))
        name, path = names.narrow(i), f"head_{i}_block_0/narrow"
        rules.append(KeyRule(f"{name}.weight", f"{path}/kernel", "linear"))
        rules.append(KeyRule(f"{name}.bias", f"{path}/bias"))
        name = names.output_layer(i)
        rules.append(
            KeyRule(f"{name}.weight", "output", "row_linear", i, heads, axis=0)
        )
        rules.append(KeyRule(f"{name}.bias", "output_bias", "row", i, heads, axis=0))
    if config.prefix_heads:
        norm, ffn_norm = "input_layernorm.weight", "post_attention_layernorm.weight"
        rules += [
            *attention(PREFIX_LAYER, "prefix_attention"),
            KeyRule(PREFIX_LAYER + norm, "prefix_norm/scale"),
            KeyRule(PREFIX_LAYER + ffn_norm, "prefix_ffn_norm/scale"),
            *mlp(PREFIX_LAYER, "prefix_ffn"),
            KeyRule(f"{PREFIX}norm.weight", "prefix_out_norm/scale"),
        ]
    return tuple(rules)


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    assert target is not None
    is_plus = HYDRA_PLUS.narrow(0) + ".weight" in source.tensors
    names = HYDRA_PLUS if is_plus else HYDRA
    if has_own_embedding(source, EMBEDDING, target, target.config.width):
        raise ConfigError(
            f"'{source.name}': {EMBEDDING} is not the embedding of its target; name "
            "the target that it was trained for with --target"
        )
    config = _infer_config(source, overrides, target.config, names)
    prefix_heads = max(config.prefix_heads, 1)
    return Plan(
        "medusa",
        config,
        _rules(config, names),
        Heads(config.width // prefix_heads, prefix_heads),
        ignored=(
            r".*\.rotary_emb\.inv_freq",
            r"prefix_embeding_layer\.embed_tokens\..*",
            re.escape(EMBEDDING),
        ),
        target=target.config,
    )


FAMILIES = (
    Family(
        "hydra",
        lambda s: any(name.startswith("hydra_mlp.") for name in s.tensors),
        _plan,
        drafter=True,
    ),
)
