"""T5's encoder, version 1.1 and Flan, which reads captions for LlamaGen.

Keys: transformers `T5EncoderModel`, or the encoder of a whole `T5` model.
"""

import re

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TextEncoderConfig
from jaxspec.convert.families.layers import apart, gated
from jaxspec.convert.family import Family, Given, Plan, agree_on, count, only
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.stored import Source
from jaxspec.convert.transforms import Heads

_ATTENTION = "encoder.block.{i}.layer.0."
_FFN = "encoder.block.{i}.layer.1."
RULES = (
    Rule(
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "distances",
    ),
    Rule(_ATTENTION + "layer_norm.weight", "layers_{i}/attention_norm/scale"),
    *apart(
        "layers_{i}/qkv/kernel",
        (f"{_ATTENTION}SelfAttention.{x}.weight" for x in "qkv"),
        "",
    ),
    Rule(_ATTENTION + "SelfAttention.o.weight", "layers_{i}/out/kernel", "linear"),
    Rule(_FFN + "layer_norm.weight", "layers_{i}/ffn_norm/scale"),
    *gated(
        "layers_{i}/gate_up/kernel",
        _FFN + "DenseReluDense.wi_0.weight",
        _FFN + "DenseReluDense.wi_1.weight",
    ),
    Rule(_FFN + "DenseReluDense.wo.weight", "layers_{i}/down/kernel", "linear"),
    Rule("encoder.final_layer_norm.weight", "norm/scale"),
)
# The one table of embeddings, under the names that it may be stored under.
TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# The half that writes.
IGNORED = (r"decoder\.(?!embed_tokens\.).*", r"lm_head\.weight")


def _plan(source: Source, given: Given, target: Checkpoint | None) -> Plan:
    said = source.config
    known = {
        "feed_forward_proj": ("gated-gelu",),
        "is_gated_act": (True,),
        "dense_act_fn": ("gelu_new",),
    }
    only(source, said, known)
    said.get("num_decoder_layers")  # of the half that writes
    first = "encoder.block.0.layer.0.SelfAttention."
    buckets, heads = source.shape(first + "relative_attention_bias.weight")
    table = next((name for name in TABLES if name in source.tensors), TABLES[0])
    copies = tuple(re.escape(name) for name in TABLES if name != table)
    vocabulary, width = source.shape(table)
    config = TextEncoderConfig(
        vocab_size=vocabulary,
        layers=count(source, _ATTENTION + "layer_norm.weight"),
        width=width,
        heads=heads,
        head_dim=source.shape(first + "q.weight")[0] // heads,
        ffn_width=source.shape("encoder.block.0.layer.1.DenseReluDense.wo.weight")[1],
        buckets=buckets,
        most_distance=said.get("relative_attention_max_distance", 128),
        norm_eps=given.get("norm_eps", said.get("layer_norm_epsilon", 1e-6)),
        length=given.get("length", 120),
    )
    found = {
        "d_model": width,
        "d_kv": config.head_dim,
        "d_ff": config.ffn_width,
        "num_layers": config.layers,
        "num_heads": heads,
        "vocab_size": vocabulary,
        "relative_attention_num_buckets": buckets,
    }
    agree_on(source, said, found)
    return Plan(
        "text_encoder",
        config,
        (Rule(table, "embedding"), *RULES),
        Heads(config.head_dim, heads),
        ignored=(*copies, *IGNORED),
    )


FAMILIES = (
    Family(
        "t5",
        lambda s: "encoder.block.0.layer.0.SelfAttention.q.weight" in s.tensors,
        _plan,
    ),
)
