"""LlamaGen's decoders: the released .pt files, and the layout that LANTERN uses.

Keys: FoundationVision/LlamaGen `autoregressive/models/gpt.py` (arXiv 2406.06525).
Rotary pairs are neighbors in both layouts, as ours: no rows move.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig, to_dict
from jaxspec.convert.families.layers import attention, gated, mlp
from jaxspec.convert.family import (
    Family,
    Given,
    Outgoing,
    Plan,
    agree,
    agree_on,
    count,
    heads_of,
    kept,
    only,
    setting,
)
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.stored import Source
from jaxspec.errors import ConfigError
from jaxspec.models.presets import SIZES

RELEASED = (
    Rule("tok_embeddings.weight", "embedding/embedding"),
    Rule("cls_embedding.embedding_table.weight", "classes/embedding"),
    Rule("cls_embedding.uncond_embedding", "null_caption"),
    Rule("cls_embedding.cap_proj.fc1.weight", "caption_in/kernel", "linear"),
    Rule("cls_embedding.cap_proj.fc2.weight", "caption_out/kernel", "linear"),
    Rule("layers.{i}.attention_norm.weight", "layers_{i}/attention_norm/scale"),
    Rule(
        "layers.{i}.attention.wqkv.weight",
        "layers_{i}/attention/qkv/kernel",
        "heads_fused",
    ),
    Rule("layers.{i}.attention.wo.weight", "layers_{i}/attention/out/kernel", "linear"),
    Rule("layers.{i}.ffn_norm.weight", "layers_{i}/ffn_norm/scale"),
    *gated(
        "layers_{i}/ffn/gate_up/kernel",
        "layers.{i}.feed_forward.w1.weight",
        "layers.{i}.feed_forward.w3.weight",
    ),
    Rule("layers.{i}.feed_forward.w2.weight", "layers_{i}/ffn/down/kernel", "linear"),
    Rule("norm.weight", "norm/scale"),
    Rule("output.weight", "head", "linear"),
)
LANTERN = (
    Rule("model.embed_tokens.weight", "embedding/embedding"),
    Rule("model.cls_embedding.embedding_table.weight", "classes/embedding"),
    Rule("model.cls_embedding.uncond_embedding", "null_caption"),
    Rule("model.cls_embedding.cap_proj.fc1.weight", "caption_in/kernel", "linear"),
    Rule("model.cls_embedding.cap_proj.fc2.weight", "caption_out/kernel", "linear"),
    Rule("model.layers.{i}.input_layernorm.weight", "layers_{i}/attention_norm/scale"),
    *attention("model.layers.{i}.", "layers_{i}/attention", ""),
    Rule(
        "model.layers.{i}.post_attention_layernorm.weight", "layers_{i}/ffn_norm/scale"
    ),
    *mlp("model.layers.{i}.", "layers_{i}/ffn"),
    Rule("model.norm.weight", "norm/scale"),
    Rule("lm_head.weight", "head", "linear"),
)
# Tables of angles and masks, which some files keep.
IGNORED = (
    r"(model\.)?(freqs_cis|causal_mask)",
    r"(model\.)?layers\.\d+\.(attention|self_attn)\.(kv_cache\..*|rotary_emb\.inv_freq)",
)


def _plan(source: Source, given: Given, target: Checkpoint | None) -> Plan:
    lantern = "model.embed_tokens.weight" in source.tensors
    root = "model." if lantern else ""
    rules = LANTERN if lantern else RELEASED
    ours = {rule.ours: rule.theirs for rule in rules}
    if (config := kept(source, TransformerConfig)) is not None:
        return Plan("prior", config, rules, heads_of(config), ignored=IGNORED)
    vocabulary, width = source.shape(ours["embedding/embedding"], 2)
    layers = count(source, ours["layers_{i}/attention_norm/scale"])
    said = _settings(source)
    known = {(n, w): h for n, h, w in SIZES.values()}
    heads = setting(
        source,
        given,
        "heads",
        said.get("num_attention_heads"),
        known.get((layers, width)),
        wanted="its number of heads",
    )
    size = width // heads
    if lantern:
        kv_heads = source.shape("model.layers.0.self_attn.k_proj.weight")[0] // size
        hidden = source.shape("model.layers.0.mlp.gate_proj.weight")[0]
    else:
        rows = source.shape("layers.0.attention.wqkv.weight")[0]
        kv_heads = (rows // size - heads) // 2
        hidden = source.shape("layers.0.feed_forward.w1.weight")[0]
    captions = f"{root}cls_embedding.uncond_embedding"
    condition: dict[str, Any] = {"condition": "class"}
    if captions in source.tensors:
        length, features = source.shape(captions)
        condition = {
            "condition": "caption",
            "caption_length": length,
            "caption_width": features,
        }
    else:
        table = source.shape(f"{root}cls_embedding.embedding_table.weight")
        condition["classes"] = table[0] - 1
    prefix = condition.get("caption_length", 1)
    config = TransformerConfig(
        vocab_size=vocabulary,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        ffn_width=hidden,
        norm_eps=given.get("norm_eps", said.get("rms_norm_eps", 1e-5)),
        rope_base=float(given.get("rope_base", said.get("rope_theta", 10000.0))),
        grid=_grid(source, given, said, prefix, root),
        **condition,
    )
    found = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "cls_token_num": prefix,
    }
    if captions in source.tensors:
        found["caption_dim"] = condition["caption_width"]
    else:
        found["num_classes"] = condition["classes"]
    agree_on(source, said, found)
    only(source, said, {"hidden_act": ("silu", "swish")})
    return Plan("prior", config, rules, heads_of(config), ignored=IGNORED)


# Settings in LANTERN's config.json, and in that of `gpt_hf.py`'s folders.
SAME = {
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "num_hidden_layers": "n_layer",
    "hidden_size": "dim",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_base",
}


def _settings(source: Source) -> dict[str, Any]:
    """The config by the names of LANTERN's.

    Raises:
      ConfigError: it has a setting under both names, and they differ.
    """
    said = source.config
    names = ("vocab_size", "block_size", "cls_token_num")
    names += ("caption_dim", "num_classes", "hidden_act")
    found = {name: said[name] for name in names if name in said}
    for name, other in SAME.items():
        values = [said[n] for n in (name, other) if n in said]
        if len(values) == 2 and values[0] != values[1]:
            raise ConfigError(
                f"'{source.name}' has {name}={values[0]!r} and {other}={values[1]!r}, "
                "which mean the same; correct its config.json"
            )
        if values and not (values[0] is None and name == "num_key_value_heads"):
            found[name] = values[0]
    return found


def _grid(source: Source, given: Given, said: Given, prefix: int, root: str) -> int:
    """Codes along a side: from the table of angles, the config, or the file's name."""
    table = source.tensors.get(f"{root}freqs_cis")
    stored = None if table is None else _side(source, table.shape[0] - prefix)
    block = said.get("block_size")
    configured = None if block is None else _side(source, block)
    file = next(iter(source.tensors.values())).file.stem
    pixels = re.search(r"_(256|384|512)$", file)
    named = int(pixels[1]) // 16 if pixels else None
    if stored is not None:
        agree(source, "the grid", configured, stored)
    return setting(
        source,
        given,
        "grid",
        stored,
        configured,
        named,
        wanted="the side of its images in codes (16, 24 or 32 for 256, 384 or 512 "
        "pixels)",
    )


def _side(source: Source, count: int) -> int:
    """The side of a square of so many codes.

    Raises:
      ConfigError: it is none.
    """
    side = math.isqrt(count) if type(count) is int and count > 0 else 0
    if side < 1 or side**2 != count:
        raise ConfigError(f"'{source.name}': {count} codes are no square")
    return side


def _export(rules: tuple[Rule, ...], kind: str) -> Callable[[Checkpoint], Outgoing]:
    def export(checkpoint: Checkpoint) -> Outgoing:
        c = checkpoint.config
        if checkpoint.kind != "prior" or c.rope != "grid":
            raise ConfigError("only decoders over a grid of codes go out as LlamaGen")
        if c.extra_tokens or c.qkv_bias or c.qk_norm or c.tied_head:
            raise ConfigError(
                "LlamaGen has no extra tokens, biases, head norms or ties"
            )
        config = {
            "model_type": kind,
            "hidden_size": c.width,
            "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads,
            "num_key_value_heads": c.num_kv_heads,
            "rms_norm_eps": c.norm_eps,
            "rope_theta": c.rope_base,
            "vocab_size": c.vocab_size,
            "block_size": c.grid**2,
            "jaxspec": to_dict(c),
        }
        return Outgoing(rules, config, heads_of(c))

    return export


FAMILIES = (
    Family(
        "llamagen",
        lambda s: (
            "tok_embeddings.weight" in s.tensors
            and "layers.0.attention.wqkv.weight" in s.tensors
            and any(name.startswith("cls_embedding.") for name in s.tensors)
        ),
        _plan,
        export=_export(RELEASED, "llamagen"),
    ),
    Family(
        "llamagen-hf",
        lambda s: (
            "model.embed_tokens.weight" in s.tensors
            and any(name.startswith("model.cls_embedding.") for name in s.tensors)
        ),
        _plan,
        export=_export(LANTERN, "llamagen-hf"),
    ),
)
