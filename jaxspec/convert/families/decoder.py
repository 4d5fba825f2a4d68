"""Configuration and key rules of decoders in Llama's layout.

Rotary pairs are half a head apart in all of them, so the outputs of queries and keys
are permuted, with their biases and norms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxspec.config import TransformerConfig
from jaxspec.convert.families.key_rules import attention, head_norms, mlp, qkv_biases
from jaxspec.convert.families.layer_sizes import layer_sizes
from jaxspec.convert.families.rotary import read_rope_base, read_rope_scaling
from jaxspec.convert.family import Overrides
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors, infer_setting
from jaxspec.convert.source_config import check_consistent, check_supported
from jaxspec.errors import ConfigError

EMBEDDING = "embed_tokens.weight"
# Tables of rotary frequencies; tokenizers, which are converted separately; and vision
# encoders, which are not used.
IGNORED = (
    r".*\.rotary_emb\.inv_freq",
    r"model\.vqmodel\..*",
    r"(model\.)?(vision_model|aligner|visual|vision_tower)\..*",
)


@dataclass(frozen=True)
class DecoderNames:
    """Tensor names of a decoder in one release.

    Attributes:
      root: prefix of "embed_tokens", "layers" and "norm".
      head: name of the output head.
    """

    root: str = "model."
    head: str = "lm_head.weight"


LLAMA = DecoderNames()


@dataclass(frozen=True)
class Defaults:
    """Defaults of a model's code, for entries that its config omits.

    Attributes:
      norm_eps: epsilon of the norms.
      rope_base: base of the rotary frequencies.
    """

    norm_eps: float = 1e-6
    rope_base: float = 10000.0


LLAMA_DEFAULTS = Defaults()


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


def decoder_config(
    source: Source,
    overrides: Overrides,
    source_config: Mapping[str, Any],
    root: str,
    head: str,
    defaults: Defaults = LLAMA_DEFAULTS,
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
    _check_layers(source, source_config, root)
    first = f"{root}layers.0.self_attn."
    vocab_size, width = source.shape(root + EMBEDDING, 2)
    layers = count_tensors(source, root + "layers.{i}.input_layernorm.weight")
    heads = infer_setting(
        source,
        overrides,
        "heads",
        source_config.get("num_attention_heads"),
        description="the number of heads",
    )
    head_size = overrides.get("head_dim") or source_config.get("head_dim") or 0
    sizes = layer_sizes(source, f"{root}layers.0.", heads=heads, head_size=head_size)
    expected = {
        "num_attention_heads": sizes.query_width // sizes.head_size,
        "num_key_value_heads": sizes.kv_heads,
        "hidden_size": width,
        "intermediate_size": sizes.ffn_width,
        "num_hidden_layers": layers,
        "vocab_size": vocab_size,
    }
    check_consistent(source, source_config, expected)
    query_norm = source.tensors.get(first + "q_norm.weight")
    base = overrides.get("rope_base", read_rope_base(source_config))
    return TransformerConfig(
        vocab_size=vocab_size,
        layers=layers,
        width=width,
        **sizes.config_args(width),
        norm_eps=overrides.get(
            "norm_eps", source_config.get("rms_norm_eps", defaults.norm_eps)
        ),
        rope="sequence",
        rope_base=float(defaults.rope_base if base is None else base),
        rope_scaling=read_rope_scaling(source, source_config),
        max_length=_max_length(overrides, source_config),
        condition="none",
        qkv_bias=first + "q_proj.bias" in source.tensors,
        qk_norm=query_norm is not None and len(query_norm.shape) == 1,
        qk_layer_norm=query_norm is not None and len(query_norm.shape) == 2,
        norm_after=bool(source_config.get("swin_norm", False)),
        tied_head=head not in source.tensors,
        token_dropout=0.0,
        residual_dropout=0.0,
        ffn_dropout=0.0,
        condition_dropout=0.0,
    )


def _check_layers(source: Source, source_config: Mapping[str, Any], root: str) -> None:
    """Refuses layers that this library does not have.

    Raises:
      ConfigError: an entry of the config describes such layers.
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


def _max_length(overrides: Overrides, source_config: Mapping[str, Any]) -> int:
    """Returns the longest sequence, at most a sliding window."""
    max_length = overrides.get(
        "max_length", source_config.get("max_position_embeddings", 2048)
    )
    window = source_config.get("sliding_window")
    if source_config.get("use_sliding_window") is False:  # Qwen keeps the size
        window = None
    return min(max_length, window or max_length)
