"""Rotary embeddings: frequencies in `config.json`, and the order of channels."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxspec.config import RopeScaling
from jaxspec.convert.reading.source import Source
from jaxspec.errors import ConfigError
from jaxspec.nn.rope import Rotary


def read_rope_base(source_config: Mapping[str, Any]) -> Any:
    """Reads `rope_theta`, also of `rope_parameters`; None if there is none."""
    rope = source_config.get("rope_parameters") or {}
    return source_config.get("rope_theta", rope.get("rope_theta"))


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


def rotary_suffix(target: Rotary) -> str:
    """Returns the suffix of transforms of a drafter's queries and keys.

    Rotary pairs of LlamaGen's drafters are neighbors already, as ours are.
    """
    if target.rope == "grid":
        return ""
    return "_rotary"
