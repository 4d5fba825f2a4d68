"""Decoders in Llama's layout: Llama, Qwen2, Qwen3, Chameleon, Emu3, Dream, LLaDA.

Tensor names: transformers `modeling_{llama,qwen2,qwen3,chameleon,emu3}.py`, and the
modeling files of LLaDA and Dream. Rotary pairs are half a head apart in all of them, so
the outputs of queries and keys are permuted, with their biases and norms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import RopeScaling, TransformerConfig
from jaxspec.convert.families.key_rules import (
    attention,
    gate_up,
    head_norms,
    mlp,
    qkv_biases,
    split_qkv,
)
from jaxspec.convert.family import ComputedParam, Family, Overrides, Plan, heads_of
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors, infer_setting
from jaxspec.convert.source_config import check_consistent, check_entry, check_supported
from jaxspec.errors import ConfigError


@dataclass(frozen=True)
class DecoderNames:
    """Tensor names of a decoder in one release.

    Attributes:
      root: prefix of "embed_tokens", "layers" and "norm".
      head: name of the output head.
    """

    root: str = "model."
    head: str = "lm_head.weight"


def decoder_rules(
    config: TransformerConfig, names: DecoderNames
) -> tuple[KeyRule, ...]:
    """Returns the rules of all layers, the final norm and the output head."""
    source, target = names.root + "layers.{i}.", "layers_{i}/"
    rules = [
        KeyRule(f"{source}input_layernorm.weight", f"{target}attention_norm/scale"),
        *attention(source, f"{target}attention"),
        KeyRule(f"{source}post_attention_layernorm.weight", f"{target}ffn_norm/scale"),
        *mlp(source, f"{target}ffn"),
        KeyRule(f"{names.root}norm.weight", "norm/scale"),
        KeyRule(names.head, "head", "linear"),
    ]
    if config.qkv_bias:
        rules += qkv_biases(source, f"{target}attention")
    return (*rules, *head_norms(source, f"{target}attention"))


EMBEDDING = "embed_tokens.weight"
LLAMA = DecoderNames()


def read_rope_scaling(
    source: Source, source_config: Mapping[str, Any]
) -> RopeScaling | None:
    """Reads `rope_scaling`, or the newer `rope_parameters`.

    Args:
      source: source of the model, for the message.
      source_config: entries of its `config.json`.

    Returns:
      The scaling; None if there is none.

    Raises:
      ConfigError: this kind of scaling is not supported.
    """
    entry = (
        source_config.get("rope_scaling") or source_config.get("rope_parameters") or {}
    )
    kind = entry.get("rope_type", entry.get("type", "default"))
    if kind in ("default", None):
        return None
    length = next(
        value
        for value in (
            entry.get("original_max_position_embeddings"),
            source_config.get("original_max_position_embeddings"),
            source_config.get("max_position_embeddings"),
            2048,
        )
        if value is not None
    )
    factor = float(entry.get("factor", 1.0))
    if kind == "linear":
        return RopeScaling("linear", factor, length)
    if kind == "llama3":
        slow, fast = entry["low_freq_factor"], entry["high_freq_factor"]
        return RopeScaling("llama3", factor, length, float(slow), float(fast))
    if kind == "yarn" and not entry.get("mscale") and entry.get("truncate", True):
        magnitude = entry.get("attention_factor")
        if magnitude is None:
            magnitude = 0.1 * float(np.log(factor)) + 1.0 if factor > 1 else 1.0
        slow = float(entry.get("beta_slow") or 1)
        fast = float(entry.get("beta_fast") or 32)
        return RopeScaling("yarn", factor, length, slow, fast, magnitude)
    raise ConfigError(
        f"'{source.name}' scales its rotary embedding by {kind!r}; linear, llama3 and "
        "plain yarn are supported"
    )


@dataclass(frozen=True)
class Defaults:
    """Defaults of a model's code, for entries that its config omits.

    Attributes:
      norm_eps: epsilon of the norms.
      rope_base: base of the rotary frequencies.
    """

    norm_eps: float = 1e-6
    rope_base: float = 10000.0


def decoder_config(
    source: Source,
    overrides: Overrides,
    source_config: Mapping[str, Any],
    root: str,
    head: str,
    defaults: Defaults = Defaults(),
) -> TransformerConfig:
    """Reads a Llama-like `config.json` and compares it with the shapes.

    Args:
      source: source of the model.
      overrides: settings given by the user.
      source_config: section of `config.json` that describes the decoder.
      root: prefix of the tensor names, as in `DecoderNames`.
      head: name of the output head, which may be missing.
      defaults: defaults of the model's code.

    Raises:
      MissingSettings: the number of heads is unknown.
      ConfigError: an entry contradicts the shapes or is not supported.
    """
    first = f"{root}layers.0.self_attn."
    has_bias = first + "q_proj.bias" in source.tensors
    has_out_bias = first + "o_proj.bias" in source.tensors
    supported = {
        "attention_bias": (False, True) if has_bias and not has_out_bias else (False,),
        "mlp_bias": (False,),
        "use_sliding_window": (False,),
        "hidden_act": ("silu", "swish"),
    }
    check_supported(source, source_config, supported)
    for kind in source_config.get("layer_types") or ():
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(
                f"'{source.name}' has layers of {kind!r}, which is not supported"
            )
    vocab_size, width = source.shape(root + EMBEDDING, 2)
    layers = count_tensors(source, root + "layers.{i}.input_layernorm.weight")
    heads = infer_setting(
        source,
        overrides,
        "heads",
        source_config.get("num_attention_heads"),
        description="the number of heads",
    )
    query_width = source.shape(first + "q_proj.weight")[0]
    head_size = overrides.get("head_dim") or source_config.get("head_dim")
    head_size = head_size or query_width // heads
    kv_heads = source.shape(first + "k_proj.weight")[0] // head_size
    ffn_width = source.shape(f"{root}layers.0.mlp.gate_proj.weight")[0]
    expected = {
        "num_attention_heads": query_width // head_size,
        "num_key_value_heads": kv_heads,
        "hidden_size": width,
        "intermediate_size": ffn_width,
        "num_hidden_layers": layers,
        "vocab_size": vocab_size,
    }
    check_consistent(source, source_config, expected)
    query_norm = source.tensors.get(first + "q_norm.weight")
    rope = source_config.get("rope_parameters") or {}
    base = overrides.get(
        "rope_base", source_config.get("rope_theta", rope.get("rope_theta"))
    )
    max_length = overrides.get(
        "max_length", source_config.get("max_position_embeddings", 2048)
    )
    window = source_config.get("sliding_window")
    if source_config.get("use_sliding_window") is False:  # Qwen keeps the size
        window = None
    return TransformerConfig(
        vocab_size=vocab_size,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        head_dim=None if head_size * heads == width else head_size,
        ffn_width=ffn_width,
        norm_eps=overrides.get(
            "norm_eps", source_config.get("rms_norm_eps", defaults.norm_eps)
        ),
        rope="sequence",
        rope_base=float(defaults.rope_base if base is None else base),
        rope_scaling=read_rope_scaling(source, source_config),
        max_length=min(max_length, window or max_length),
        condition="none",
        qkv_bias=has_bias,
        qk_norm=query_norm is not None and len(query_norm.shape) == 1,
        qk_layer_norm=query_norm is not None and len(query_norm.shape) == 2,
        norm_after=bool(source_config.get("swin_norm", False)),
        tied_head=head not in source.tensors,
        token_dropout=0.0,
        residual_dropout=0.0,
        ffn_dropout=0.0,
        condition_dropout=0.0,
    )


# Tokenizers, which are converted separately, and vision encoders, which are not used.
IGNORED = (
    r".*\.rotary_emb\.inv_freq",
    r"model\.vqmodel\..*",
    r"(model\.)?(vision_model|aligner|visual|vision_tower)\..*",
)


def _causal(
    names: DecoderNames, section: str | None = None, defaults: Defaults = Defaults()
):
    """Returns the `plan` of an autoregressive decoder."""

    def plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
        source_config = source.config.get(section, {}) if section else source.config
        config = decoder_config(
            source, overrides, source_config, names.root, names.head, defaults
        )
        ignored = IGNORED
        if config.tied_head:
            check_entry(
                source,
                "tie_word_embeddings",
                source_config.get("tie_word_embeddings"),
                True,
            )
        elif source_config.get("tie_word_embeddings"):
            # The file holds a copy of the embedding as the output head.
            config, ignored = replace(config, tied_head=True), (*IGNORED, names.head)
        rules = (
            KeyRule(names.root + EMBEDDING, "embedding/embedding"),
            *decoder_rules(config, names),
        )
        return Plan("prior", config, rules, heads_of(config), ignored=ignored)

    return plan


def _masked(token: int, shifted: bool, names: DecoderNames | None):
    """Returns the `plan` of a masked-diffusion model.

    Its mask token is a token of its vocabulary. Ours is an extra token after the
    vocabulary, so the embedding of the mask token is copied to the end of the table.

    Args:
      token: default id of the mask token.
      shifted: whether the outputs of a position predict the next one.
      names: tensor names; None for LLaDA's.
    """

    def plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
        mask = overrides.get("mask_token", source.config.get("mask_token_id", token))
        if names is None:
            config, rules = _plan_llada(source, overrides)
            table = "model.transformer.wte.weight"
        else:
            config = decoder_config(
                source, overrides, source.config, names.root, names.head
            )
            rules, table = decoder_rules(config, names), names.root + EMBEDDING
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


def _plan_llada(
    source: Source, overrides: Overrides
) -> tuple[TransformerConfig, tuple[KeyRule, ...]]:
    source_config, first = source.config, "model.transformer.blocks.0."
    supported = {
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "activation_type": ("silu", "swiglu"),
        "rope": (True,),
    }
    check_supported(source, source_config, supported)
    table_size, width = source.shape("model.transformer.wte.weight")
    heads = infer_setting(
        source,
        overrides,
        "heads",
        source_config.get("n_heads"),
        description="the number of heads",
    )
    head_size = width // heads
    kv_heads = source.shape(first + "k_proj.weight")[0] // head_size
    head = "model.transformer.ff_out.weight"
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
        tied_head=head not in source.tensors,
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
    block, target = "model.transformer.blocks.{i}.", "layers_{i}/"
    kernel = f"{target}attention/qkv/kernel"
    rules = (
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
        KeyRule(head, "head", "linear"),
    )
    return config, rules


def _has_model_type(*types: str):
    """Returns a predicate for sources in Llama's layout with a `model_type`."""

    def detect(source: Source) -> bool:
        has_layout = LLAMA.root + EMBEDDING in source.tensors
        return has_layout and source.config.get("model_type") in types

    return detect


EMU3, EMU3_DEFAULTS = DecoderNames("model.text_model."), Defaults(1e-5, 1e6)
FAMILIES = (
    Family("llama", _has_model_type("llama", "mistral"), _causal(LLAMA)),
    Family("qwen2", _has_model_type("qwen2"), _causal(LLAMA)),
    Family("qwen3", _has_model_type("qwen3"), _causal(LLAMA)),
    Family(
        "chameleon",
        _has_model_type("chameleon"),
        _causal(LLAMA, defaults=Defaults(1e-5)),
    ),
    Family(
        "emu3",
        lambda s: (
            s.config.get("model_type") == "emu3" and EMU3.root + EMBEDDING in s.tensors
        ),
        _causal(EMU3, "text_config", EMU3_DEFAULTS),
    ),
    Family(
        "emu3-original",
        lambda s: (
            str(s.config.get("model_type")).lower() == "emu3"
            and LLAMA.root + EMBEDDING in s.tensors
        ),
        _causal(LLAMA, defaults=EMU3_DEFAULTS),
    ),
    Family(
        "dream",
        lambda s: str(s.config.get("model_type")).lower() == "dream",
        _masked(151666, True, LLAMA),
    ),
    Family(
        "llada",
        lambda s: "model.transformer.blocks.0.ff_proj.weight" in s.tensors,
        _masked(126336, False, None),
    ),
)
