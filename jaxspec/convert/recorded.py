"""A model's `config.json`, and which of its entries the conversion took into account.

A setting that changes the numbers and is passed over gives a checkpoint that draws
wrong images without any error. So entries that were not read are sorted: those that
cannot change the numbers are dropped, those that do in a way that is not known here are
refused, and the rest are named in the summary.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxspec.errors import ConfigError

# Of files, training, text, sampling, serving; and sizes that the tensors have anyway.
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
# What leaves the numbers as they are, of settings that change them.
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


class Recorded(Mapping[str, Any]):
    """A mapping that keeps which of its keys were read, in its inner ones as well."""

    def __init__(self, values: Mapping[str, Any]):
        """Nothing was read yet."""
        self._values = {
            key: Recorded(x) if isinstance(x, Mapping) else x
            for key, x in values.items()
        }
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        """The value, which counts as read from now on."""
        value = self._values[key]
        self._read.add(key)
        return value

    def __contains__(self, key: object) -> bool:
        """Whether it is there; that reads nothing."""
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        """All keys."""
        return iter(self._values)

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._values)

    def plain(self) -> dict[str, Any]:
        """The same as dicts."""
        return {
            key: x.plain() if isinstance(x, Recorded) else x
            for key, x in self._values.items()
        }

    def unread(self, root: str = "") -> dict[str, Any]:
        """Entries that were not read, by their path.

        An inner mapping of which nothing was asked is about another part of the model.
        """
        found: dict[str, Any] = {}
        for key, value in self._values.items():
            if isinstance(value, Recorded):
                if key in self._read:
                    found |= value.unread(f"{root}{key}.")
            elif key not in self._read:
                found[root + key] = value
        return found


def check_unread(config: Recorded, source: str) -> tuple[str, ...]:
    """Names of entries that were not read and may matter.

    Args:
      config: after everything was read that is known.
      source: its name, for messages.

    Raises:
      ConfigError: some of them change the numbers.
    """
    left: list[str] = []
    wrong: list[str] = []
    for path, value in config.unread().items():
        key = path.rpartition(".")[2]
        if key in NEUTRAL:
            if not isinstance(value, list) and value in NEUTRAL[key]:
                continue
            wrong.append(f"{path}={value!r}")
        elif not HARMLESS.fullmatch(key) and value not in (None, False, "", []):
            left.append(path)
    if wrong:
        raise ConfigError(
            f"'{source}' has {', '.join(wrong)} in its config.json, which changes its "
            "numbers in a way that is not known here"
        )
    return tuple(left)
