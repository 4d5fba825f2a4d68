"""Encoder of T5 1.1 and Flan-T5, the text encoder of LlamaGen.

Tensor names: transformers `T5EncoderModel`, or the encoder of a whole `T5` model.
"""

import re

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TextEncoderConfig
from jaxspec.convert.families.key_rules import gate_up, split_qkv
from jaxspec.convert.family import Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors
from jaxspec.convert.source_config import check_consistent, check_supported
from jaxspec.convert.transforms import Heads

_ATTENTION = "encoder.block.{i}.layer.0."
_FFN = "encoder.block.{i}.layer.1."
RULES = (
    KeyRule(
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "distances",
    ),
    KeyRule(_ATTENTION + "layer_norm.weight", "layers_{i}/attention_norm/scale"),
    *split_qkv(
        "layers_{i}/qkv/kernel",
        (f"{_ATTENTION}SelfAttention.{x}.weight" for x in "qkv"),
        "",
    ),
    KeyRule(_ATTENTION + "SelfAttention.o.weight", "layers_{i}/out/kernel", "linear"),
    KeyRule(_FFN + "layer_norm.weight", "layers_{i}/ffn_norm/scale"),
    *gate_up(
        "layers_{i}/gate_up/kernel",
        _FFN + "DenseReluDense.wi_0.weight",
        _FFN + "DenseReluDense.wi_1.weight",
    ),
    KeyRule(_FFN + "DenseReluDense.wo.weight", "layers_{i}/down/kernel", "linear"),
    KeyRule("encoder.final_layer_norm.weight", "norm/scale"),
)
# Names of the token embedding, which is shared; files hold one or several of them.
TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# The decoder is not converted.
IGNORED = (r"decoder\.(?!embed_tokens\.).*", r"lm_head\.weight")


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    source_config = source.config
    supported = {
        "feed_forward_proj": ("gated-gelu",),
        "is_gated_act": (True,),
        "dense_act_fn": ("gelu_new",),
    }
    check_supported(source, source_config, supported)
    source_config.get("num_decoder_layers")  # marks it as read
    first = "encoder.block.0.layer.0.SelfAttention."
    buckets, heads = source.shape(first + "relative_attention_bias.weight")
    embedding = next((name for name in TABLES if name in source.tensors), TABLES[0])
    duplicates = tuple(re.escape(name) for name in TABLES if name != embedding)
    vocab_size, width = source.shape(embedding)
    config = TextEncoderConfig(
        vocab_size=vocab_size,
        layers=count_tensors(source, _ATTENTION + "layer_norm.weight"),
        width=width,
        heads=heads,
        head_dim=source.shape(first + "q.weight")[0] // heads,
        ffn_width=source.shape("encoder.block.0.layer.1.DenseReluDense.wo.weight")[1],
        buckets=buckets,
        most_distance=source_config.get("relative_attention_max_distance", 128),
        norm_eps=overrides.get(
            "norm_eps", source_config.get("layer_norm_epsilon", 1e-6)
        ),
        length=overrides.get("length", 120),
    )
    expected = {
        "d_model": width,
        "d_kv": config.head_dim,
        "d_ff": config.ffn_width,
        "num_layers": config.layers,
        "num_heads": heads,
        "vocab_size": vocab_size,
        "relative_attention_num_buckets": buckets,
    }
    check_consistent(source, source_config, expected)
    return Plan(
        "text_encoder",
        config,
        (KeyRule(embedding, "embedding"), *RULES),
        Heads(config.head_dim, heads),
        ignored=(*duplicates, *IGNORED),
    )


FAMILIES = (
    Family(
        "t5",
        lambda s: "encoder.block.0.layer.0.SelfAttention.q.weight" in s.tensors,
        _plan,
    ),
)
