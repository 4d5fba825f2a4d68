"""LlamaGen decoders, as released `.pt` files and in LANTERN's Hugging Face layout.

Tensor names: FoundationVision/LlamaGen `autoregressive/models/gpt.py` (arXiv
2406.06525). Rotary pairs are neighbors in both layouts, as in ours.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig, to_dict
from jaxspec.convert.families.key_rules import attention, gate_up, mlp
from jaxspec.convert.family import ExportPlan, Family, Overrides, Plan, heads_of
from jaxspec.convert.imagenet import imagenet_classes
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors, infer_setting
from jaxspec.convert.source_config import (
    check_consistent,
    check_entry,
    check_supported,
    exported_config,
)
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.presets import SIZES

RELEASED = (
    KeyRule("tok_embeddings.weight", "embedding/embedding"),
    KeyRule("cls_embedding.embedding_table.weight", "classes/embedding"),
    KeyRule("cls_embedding.uncond_embedding", "null_caption"),
    KeyRule("cls_embedding.cap_proj.fc1.weight", "caption_in/kernel", "linear"),
    KeyRule("cls_embedding.cap_proj.fc2.weight", "caption_out/kernel", "linear"),
    KeyRule("layers.{i}.attention_norm.weight", "layers_{i}/attention_norm/scale"),
    KeyRule(
        "layers.{i}.attention.wqkv.weight",
        "layers_{i}/attention/qkv/kernel",
        "heads_fused",
    ),
    KeyRule(
        "layers.{i}.attention.wo.weight", "layers_{i}/attention/out/kernel", "linear"
    ),
    KeyRule("layers.{i}.ffn_norm.weight", "layers_{i}/ffn_norm/scale"),
    *gate_up(
        "layers_{i}/ffn/gate_up/kernel",
        "layers.{i}.feed_forward.w1.weight",
        "layers.{i}.feed_forward.w3.weight",
    ),
    KeyRule(
        "layers.{i}.feed_forward.w2.weight", "layers_{i}/ffn/down/kernel", "linear"
    ),
    KeyRule("norm.weight", "norm/scale"),
    KeyRule("output.weight", "head", "linear"),
)
LANTERN = (
    KeyRule("model.embed_tokens.weight", "embedding/embedding"),
    KeyRule("model.cls_embedding.embedding_table.weight", "classes/embedding"),
    KeyRule("model.cls_embedding.uncond_embedding", "null_caption"),
    KeyRule("model.cls_embedding.cap_proj.fc1.weight", "caption_in/kernel", "linear"),
    KeyRule("model.cls_embedding.cap_proj.fc2.weight", "caption_out/kernel", "linear"),
    KeyRule(
        "model.layers.{i}.input_layernorm.weight", "layers_{i}/attention_norm/scale"
    ),
    *attention("model.layers.{i}.", "layers_{i}/attention", ""),
    KeyRule(
        "model.layers.{i}.post_attention_layernorm.weight", "layers_{i}/ffn_norm/scale"
    ),
    *mlp("model.layers.{i}.", "layers_{i}/ffn"),
    KeyRule("model.norm.weight", "norm/scale"),
    KeyRule("lm_head.weight", "head", "linear"),
)
# Tables of rotary angles and masks, which some files contain.
IGNORED = (
    r"(model\.)?(freqs_cis|causal_mask)",
    r"(model\.)?layers\.\d+\.(attention|self_attn)\.(kv_cache\..*|rotary_emb\.inv_freq)",
)


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    is_lantern = "model.embed_tokens.weight" in source.tensors
    root = "model." if is_lantern else ""
    rules = LANTERN if is_lantern else RELEASED
    names = {rule.target: rule.source for rule in rules}
    if (config := exported_config(source, TransformerConfig)) is not None:
        return Plan("prior", config, rules, heads_of(config), ignored=IGNORED)
    vocab_size, width = source.shape(names["embedding/embedding"], 2)
    layers = count_tensors(source, names["layers_{i}/attention_norm/scale"])
    source_config = _normalized_config(source)
    released_heads = {(n, w): h for n, h, w in SIZES.values()}
    heads = infer_setting(
        source,
        overrides,
        "heads",
        source_config.get("num_attention_heads"),
        released_heads.get((layers, width)),
        description="its number of heads",
    )
    kv_heads, ffn_width = _layer_sizes(source, heads, width // heads)
    condition = _condition(source, root)
    prefix = condition.get("caption_length", 1)
    config = TransformerConfig(
        vocab_size=vocab_size,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        ffn_width=ffn_width,
        norm_eps=overrides.get("norm_eps", source_config.get("rms_norm_eps", 1e-5)),
        rope_base=float(
            overrides.get("rope_base", source_config.get("rope_theta", 10000.0))
        ),
        grid=_grid(source, overrides, source_config, prefix, root),
        **condition,
    )
    expected = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab_size,
        "cls_token_num": prefix,
    }
    if "caption_width" in condition:
        expected["caption_dim"] = condition["caption_width"]
    else:
        expected["num_classes"] = condition["classes"]
    check_consistent(source, source_config, expected)
    check_supported(source, source_config, {"hidden_act": ("silu", "swish")})
    return Plan(
        "prior",
        config,
        rules,
        heads_of(config),
        ignored=IGNORED,
        metadata=_published(config),
    )


def _published(config: TransformerConfig) -> dict[str, Any]:
    """Returns the settings of LlamaGen's samplers, and the names of its classes.

    They are the defaults of `sample_c2i.py` and `sample_t2i.py`; FID was measured with
    scales of 1.65 to 2 and without a filter.
    """
    if config.condition == "caption":
        return {"generation": {"cfg_scale": 7.5, "top_k": 1000}}
    settings: dict[str, Any] = {"generation": {"cfg_scale": 4.0, "top_k": 2000}}
    if config.classes == 1000:
        settings["class_names"] = imagenet_classes()
    return settings


def _layer_sizes(source: Source, heads: int, head_size: int) -> tuple[int, int]:
    """Returns the number of key/value heads, and the hidden width of the MLP."""
    if "model.embed_tokens.weight" in source.tensors:  # LANTERN's layout
        kv_width = source.shape("model.layers.0.self_attn.k_proj.weight")[0]
        ffn_width = source.shape("model.layers.0.mlp.gate_proj.weight")[0]
        return kv_width // head_size, ffn_width
    qkv_width = source.shape("layers.0.attention.wqkv.weight")[0]
    ffn_width = source.shape("layers.0.feed_forward.w1.weight")[0]
    return (qkv_width // head_size - heads) // 2, ffn_width


def _condition(source: Source, root: str) -> dict[str, Any]:
    """Returns the arguments of the configuration about classes or captions."""
    null_caption = f"{root}cls_embedding.uncond_embedding"
    if null_caption in source.tensors:
        length, width = source.shape(null_caption)
        return {
            "condition": "caption",
            "caption_length": length,
            "caption_width": width,
        }
    table = source.shape(f"{root}cls_embedding.embedding_table.weight")
    return {"condition": "class", "classes": table[0] - 1}


# Entries of LANTERN's config.json, and their names in LlamaGen's `gpt_hf.py`.
ALIASES = {
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "num_hidden_layers": "n_layer",
    "hidden_size": "dim",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_base",
}


def _normalized_config(source: Source) -> dict[str, Any]:
    """Returns the config with LANTERN's names of entries.

    Raises:
      ConfigError: it has an entry under both names, with different values.
    """
    source_config = source.config
    names = ("vocab_size", "block_size", "cls_token_num")
    names += ("caption_dim", "num_classes", "hidden_act")
    result = {name: source_config[name] for name in names if name in source_config}
    for name, alias in ALIASES.items():
        values = [source_config[n] for n in (name, alias) if n in source_config]
        if len(values) == 2 and values[0] != values[1]:
            raise ConfigError(
                f"'{source.name}' has {name}={values[0]!r} and {alias}={values[1]!r}, "
                "which mean the same; correct its config.json"
            )
        if values and not (values[0] is None and name == "num_key_value_heads"):
            result[name] = values[0]
    return result


def _grid(
    source: Source,
    overrides: Overrides,
    source_config: Mapping[str, Any],
    prefix: int,
    root: str,
) -> int:
    """Infers the tokens along a side of an image.

    The sources are the table of rotary angles, the config and the name of the file, in
    this order.
    """
    table = source.tensors.get(f"{root}freqs_cis")
    from_table = None if table is None else _side(source, table.shape[0] - prefix)
    num_tokens = source_config.get("block_size")
    from_config = None if num_tokens is None else _side(source, num_tokens)
    file = next(iter(source.tensors.values())).file.stem
    pixels = re.search(r"_(256|384|512)$", file)
    from_name = int(pixels[1]) // 16 if pixels else None
    if from_table is not None:
        check_entry(source, "the grid", from_config, from_table)
    return infer_setting(
        source,
        overrides,
        "grid",
        from_table,
        from_config,
        from_name,
        description="the side of its images in tokens (16, 24 or 32 for 256, 384 or "
        "512 pixels)",
    )


def _side(source: Source, num_tokens: int) -> int:
    """Returns the side of a square image of `num_tokens` tokens.

    Raises:
      ConfigError: the number is not a square.
    """
    is_count = type(num_tokens) is int and num_tokens > 0
    side = math.isqrt(num_tokens) if is_count else 0
    if side < 1 or side**2 != num_tokens:
        raise ConfigError(f"'{source.name}': {num_tokens} tokens are no square")
    return side


def _export(
    rules: tuple[KeyRule, ...], model_type: str
) -> Callable[[Checkpoint], ExportPlan]:
    def export(checkpoint: Checkpoint) -> ExportPlan:
        c = checkpoint.config
        if checkpoint.kind != "prior" or c.rope != "grid":
            raise ConfigError(
                "only decoders over a grid of tokens can be exported as LlamaGen"
            )
        if c.extra_tokens or c.qkv_bias or c.qk_norm or c.tied_head:
            raise ConfigError(
                "LlamaGen has no extra tokens, biases, head norms or tied head"
            )
        config = {
            "model_type": model_type,
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
        return ExportPlan(rules, config, heads_of(c))

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
