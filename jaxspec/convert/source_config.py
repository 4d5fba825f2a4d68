"""Entries of a source's `config.json`: checks, and which of them were read.

Ignoring an entry that changes the model's outputs gives a checkpoint that generates
wrong images without any error. Unread entries are therefore classified: those that
cannot change the outputs are dropped, those that are known to change them raise an
error, and the rest are listed in the summary.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxspec.config import from_dict
from jaxspec.convert.reading.source import Source
from jaxspec.errors import ConfigError

# Entries about files, training, text, sampling or serving, and sizes that the shapes of
# the tensors determine.
HARMLESS = re.compile(
    r"_.*|architectures|auto_map|cls|model_type|dtype|torch_dtype|(.*_)?version"
    r"|.*dropout.*|.*_pdrop|.*drop_rate|.*drop_path.*|.*loss.*|init_.*|initializer_.*"
    r"|(.*_)?tokens?(_ids?|_index|izer.*)?"
    r"|output_(attentions|hidden_states|scores|router_logits)|return_.*|is_decoder"
    r"|is_encoder_decoder|add_cross_attention|chunk_size_feed_forward|id2label"
    r"|label2id|num_labels"
    r"|problem_type|torchscript|use_bfloat16|prefix|task_specific_params|.*gradient.*"
    r"|temperature|top_k|top_p|typical_p|do_sample|num_beams.*|.*_penalty"
    r"|(max|min)_length|max_new_tokens|num_return_sequences|no_repeat_ngram_size"
    r"|pretraining_tp|model_parallel_size|use_cache|use_flash.*|flash_attention"
    r"|attn_implementation|cache_implementation|max_window_layers|max_(batch|seq)_.*"
    r"|multiple_of|ffn_dim_multiplier|mlp_ratio|block_(type|group_size)|precision"
    r"|alibi_bias_max|rope_full_precision|codebook_show_usage|n_positions|license"
    r"|tags|repo_url|pipeline_tag|unsloth_.*|quantization_config|base_model_.*"
    r"|max_position_embeddings|num_hidden_layers|intermediate_size|draft_vocab_size"
    r"|tie_word_embeddings|attention_layer_norm_with_affine|bias"
    r"|(medusa|hydra)_num_(heads|layers)"
)
# Entries that change the outputs, and the values for which they do not.
_OFF = (None, False, 0)
_ONE = (None, 1)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "alibi", "attention_layer_norm", "attention_multiplier", "attention_scale",
            "attn_logit_softcapping", "attn_temperature_tuning", "clip_qkv",
            "final_logit_softcapping", "input_emb_norm", "logit_softcapping",
            "no_rope_layer_interval", "num_experts", "num_local_experts",
            "parallel_residual", "qk_layernorm", "query_pre_attn_scalar", "scale_depth",
            "scale_logits", "use_parallel_residual",
        ),
        _OFF,
    ),
    **dict.fromkeys(
        (
            "embedding_multiplier", "input_embedding_scale", "logit_scale",
            "logits_scaling", "output_multiplier", "partial_rotary_factor",
            "residual_multiplier", "rotary_pct", "scale_emb",
        ),
        _ONE,
    ),
}  # fmt: skip


class TrackedConfig(Mapping[str, Any]):
    """A config that records the keys that were read, also in nested mappings."""

    def __init__(self, values: Mapping[str, Any]):
        """Wraps the values; none counts as read yet."""
        self._values = {
            key: TrackedConfig(x) if isinstance(x, Mapping) else x
            for key, x in values.items()
        }
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        """Returns a value and records the key."""
        value = self._values[key]
        self._read.add(key)
        return value

    def __contains__(self, key: object) -> bool:
        """Returns whether a key exists, without recording it."""
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        """Iterates over all keys."""
        return iter(self._values)

    def __len__(self) -> int:
        """Returns the number of keys."""
        return len(self._values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as nested dicts."""
        return {
            key: x.to_dict() if isinstance(x, TrackedConfig) else x
            for key, x in self._values.items()
        }

    def unread(self, root: str = "") -> dict[str, Any]:
        """Returns the entries that were not read, by dotted path.

        Nested mappings that were not read at all are left out: they describe another
        part of the model.
        """
        result: dict[str, Any] = {}
        for key, value in self._values.items():
            if isinstance(value, TrackedConfig):
                if key in self._read:
                    result |= value.unread(f"{root}{key}.")
            elif key not in self._read:
                result[root + key] = value
        return result


def check_unread(config: TrackedConfig, source: str) -> tuple[str, ...]:
    """Returns the names of unread entries that may matter.

    Args:
      config: config of the model, after planning has read all entries it supports.
      source: name of the source, for messages.

    Raises:
      ConfigError: an unread entry changes the model's outputs.
    """
    unknown: list[str] = []
    unsupported: list[str] = []
    for path, value in config.unread().items():
        key = path.rpartition(".")[2]
        if key in NEUTRAL:
            if not isinstance(value, list) and value in NEUTRAL[key]:
                continue
            unsupported.append(f"{path}={value!r}")
        elif not HARMLESS.fullmatch(key) and value not in (None, False, "", []):
            unknown.append(path)
    if unsupported:
        raise ConfigError(
            f"'{source}' has {', '.join(unsupported)} in its config.json, which "
            "changes the model's outputs and is not supported"
        )
    return tuple(unknown)


# Entries of config.json that no shape shows, and their names in our configurations.
SHAPELESS = {
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_base",
    "num_attention_heads": "heads",
}


def exported_config(source: Source, cls: type) -> Any:
    """Returns the configuration in files that `export` wrote; None for other files.

    Raises:
      ConfigError: it is damaged, or contradicts other entries of `config.json`.
    """
    values = source.config.get("jaxspec")
    if values is None:
        return None
    if isinstance(values, TrackedConfig):
        values = values.to_dict()
    config = from_dict(cls, values)
    for entry, name in SHAPELESS.items():
        expected = getattr(config, name, None)
        if expected is not None:
            value = source.config.get(entry)
            check_entry(source, entry, value, expected, "its entry 'jaxspec'")
    return config


def check_entry(
    source: Source, key: str, value: Any, expected: Any, origin: str = "its tensors"
) -> None:
    """Compares one entry of `config.json` with the value found elsewhere.

    Args:
      source: source of the model, for the message.
      key: name of the entry.
      value: value of the entry; None if there is none, which is always accepted.
      expected: value found elsewhere.
      origin: description of that place, for the message.

    Raises:
      ConfigError: the values differ.
    """
    if value is not None and value != expected:
        raise ConfigError(
            f"'{source.name}': {key} is {value} in config.json, but {expected} in "
            f"{origin}"
        )


def check_consistent(
    source: Source,
    source_config: Mapping[str, Any],
    expected: Mapping[str, Any],
    origin: str = "its tensors",
) -> None:
    """Applies `check_entry` to all keys of `expected`.

    Raises:
      ConfigError: a value differs.
    """
    for key, value in expected.items():
        check_entry(source, key, source_config.get(key), value, origin)


def check_supported(
    source: Source,
    source_config: Mapping[str, Any],
    supported: Mapping[str, tuple[Any, ...]],
) -> None:
    """Refuses values in `config.json` that have no counterpart in this library.

    Args:
      source: source of the model, for the message.
      source_config: entries of its `config.json`.
      supported: supported values by key; a missing entry or None is always accepted.

    Raises:
      ConfigError: an entry has another value.
    """
    for key, values in supported.items():
        value = source_config.get(key)
        if value is not None and value not in values:
            raise ConfigError(
                f"'{source.name}' has {key}={value!r}, which is not supported"
            )
