"""Masked-diffusion language models: LLaDA, and Dream, which has Qwen2's layout.

Tensor names: the modeling files of LLaDA and Dream.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig
from jaxspec.convert.families.decoder import (
    EMBEDDING,
    IGNORED,
    LLAMA,
    decoder_config,
    decoder_rules,
)
from jaxspec.convert.families.key_rules import gate_up, split_qkv
from jaxspec.convert.family import ComputedParam, Family, Overrides, Plan, heads_of
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors, infer_setting
from jaxspec.convert.source_config import (
    check_consistent,
    check_entry,
    check_supported,
)
from jaxspec.errors import ConfigError

LLADA_EMBEDDING = "model.transformer.wte.weight"
LLADA_HEAD = "model.transformer.ff_out.weight"
# Configuration of the model, rules without its embedding, name of the embedding.
Model = tuple[TransformerConfig, tuple[KeyRule, ...], str]
ModelReader = Callable[[Source, Overrides], Model]


def _masked(token: int, shifted: bool, read: ModelReader):
    """Returns the `plan` of a masked-diffusion model.

    Its mask token is a token of its vocabulary. Ours is an extra token after the
    vocabulary, so the embedding of the mask token is copied to the end of the table.

    Args:
      token: default id of the mask token.
      shifted: whether the outputs of a position predict the next one.
      read: function that returns configuration, rules and name of the embedding.
    """

    def plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
        mask = overrides.get("mask_token", source.config.get("mask_token_id", token))
        config, rules, table = read(source, overrides)
        if not 0 <= mask < config.vocab_size:
            raise ConfigError(
                f"the mask token {mask} is not one of {config.vocab_size}; give it "
                "with --set mask_token=NUMBER"
            )

        def append_mask(embedding: np.ndarray) -> np.ndarray:
            return np.concatenate([embedding, embedding[mask : mask + 1]])

        return Plan(
            "prior",
            replace(config, extra_tokens=1),
            rules,
            heads_of(config),
            {"embedding/embedding": ComputedParam((table,), append_mask)},
            IGNORED,
            {"objective": "masked", "shifted": shifted},
        )

    return plan


def _read_dream(source: Source, overrides: Overrides) -> Model:
    config = decoder_config(source, overrides, source.config, LLAMA.root, LLAMA.head)
    return config, decoder_rules(config, LLAMA), LLAMA.root + EMBEDDING


def _read_llada(source: Source, overrides: Overrides) -> Model:
    return _llada_config(source, overrides), _llada_rules(), LLADA_EMBEDDING


def _llada_config(source: Source, overrides: Overrides) -> TransformerConfig:
    """Reads LLaDA's `config.json` and compares it with the shapes."""
    source_config, first = source.config, "model.transformer.blocks.0."
    supported = {
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "activation_type": ("silu", "swiglu"),
        "rope": (True,),
    }
    check_supported(source, source_config, supported)
    table_size, width = source.shape(LLADA_EMBEDDING)
    heads = infer_setting(
        source,
        overrides,
        "heads",
        source_config.get("n_heads"),
        description="the number of heads",
    )
    head_size = width // heads
    kv_heads = source.shape(first + "k_proj.weight")[0] // head_size
    config = TransformerConfig(
        vocab_size=table_size,
        layers=count_tensors(source, "model.transformer.blocks.{i}.attn_norm.weight"),
        width=width,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        ffn_width=source.shape(first + "ff_proj.weight")[0],
        norm_eps=overrides.get("norm_eps", source_config.get("rms_norm_eps", 1e-5)),
        rope="sequence",
        rope_base=float(
            overrides.get("rope_base", source_config.get("rope_theta", 10000.0))
        ),
        max_length=overrides.get(
            "max_length", source_config.get("max_sequence_length", 1024)
        ),
        condition="none",
        tied_head=LLADA_HEAD not in source.tensors,
    )
    expected = {
        "n_layers": config.layers,
        "n_kv_heads": kv_heads,
        "d_model": width,
        "mlp_hidden_size": config.ffn_width,
        "embedding_size": table_size,
    }
    check_consistent(source, source_config, expected)
    vocab_size = source_config.get("vocab_size")
    # With an embedding_size, the table may be larger than the vocabulary.
    if source_config.get("embedding_size") is None:
        check_entry(source, "vocab_size", vocab_size, table_size)
    tied = source_config.get("weight_tying")
    check_entry(source, "weight_tying", tied, config.tied_head)
    return config


def _llada_rules() -> tuple[KeyRule, ...]:
    """Returns the rules of all layers, the final norm and the output head."""
    block, target = "model.transformer.blocks.{i}.", "layers_{i}/"
    kernel = f"{target}attention/qkv/kernel"
    return (
        KeyRule(f"{block}attn_norm.weight", f"{target}attention_norm/scale"),
        *split_qkv(kernel, (f"{block}{x}_proj.weight" for x in "qkv"), "_rotary"),
        KeyRule(f"{block}attn_out.weight", f"{target}attention/out/kernel", "linear"),
        KeyRule(f"{block}ff_norm.weight", f"{target}ffn_norm/scale"),
        *gate_up(
            f"{target}ffn/gate_up/kernel",
            f"{block}ff_proj.weight",
            f"{block}up_proj.weight",
        ),
        KeyRule(f"{block}ff_out.weight", f"{target}ffn/down/kernel", "linear"),
        KeyRule("model.transformer.ln_f.weight", "norm/scale"),
        KeyRule(LLADA_HEAD, "head", "linear"),
    )


FAMILIES = (
    Family(
        "dream",
        lambda s: str(s.config.get("model_type")).lower() == "dream",
        _masked(151666, True, _read_dream),
    ),
    Family(
        "llada",
        lambda s: "model.transformer.blocks.0.ff_proj.weight" in s.tensors,
        _masked(126336, False, _read_llada),
    ),
)
