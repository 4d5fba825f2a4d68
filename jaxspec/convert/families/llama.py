"""Autoregressive decoders in Llama's layout: Llama, Qwen2, Qwen3, Chameleon and Emu3.

Tensor names: transformers `modeling_{llama,qwen2,qwen3,chameleon,emu3}.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxspec.checkpoint import Checkpoint
from jaxspec.convert.families.decoder import (
    EMBEDDING,
    IGNORED,
    LLAMA,
    LLAMA_DEFAULTS,
    DecoderNames,
    Defaults,
    decoder_config,
    decoder_rules,
)
from jaxspec.convert.family import Family, Overrides, Plan, heads_of
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.source_config import check_entry


def _causal(
    names: DecoderNames,
    section: str | None = None,
    defaults: Defaults = LLAMA_DEFAULTS,
    generation: Mapping[str, Any] | None = None,
):
    """Returns the `plan` of a decoder; `generation` are its published settings."""
    metadata = {"generation": dict(generation)} if generation else {}

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
        return Plan(
            "prior",
            config,
            rules,
            heads_of(config),
            ignored=ignored,
            metadata=metadata,
        )

    return plan


def _has_model_type(*types: str):
    """Returns a predicate for sources in Llama's layout with a `model_type`."""

    def detect(source: Source) -> bool:
        has_layout = LLAMA.root + EMBEDDING in source.tensors
        return has_layout and source.config.get("model_type") in types

    return detect


EMU3, EMU3_DEFAULTS = DecoderNames("model.text_model."), Defaults(1e-5, 1e6)
EMU3_GENERATION = {"cfg_scale": 3.0, "top_k": 2048}  # of its `image_generation.py`
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
        _causal(EMU3, "text_config", EMU3_DEFAULTS, EMU3_GENERATION),
    ),
    Family(
        "emu3-original",
        lambda s: (
            str(s.config.get("model_type")).lower() == "emu3"
            and LLAMA.root + EMBEDDING in s.tensors
        ),
        _causal(LLAMA, defaults=EMU3_DEFAULTS, generation=EMU3_GENERATION),
    ),
)
