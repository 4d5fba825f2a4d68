"""Image generation with Janus and Janus-Pro.

The language model embeds text tokens with one table, and image tokens with another that
is followed by a small network, the aligner. We apply the aligner to the whole table
during conversion. The output head for image tokens is a small network, too. Image
tokens are the vocabulary of the converted model; text tokens come after it, as extra
tokens that are read but never generated: text token `t` is `image_tokens + t`.

Tensor names: transformers `JanusForConditionalGeneration`, and the first release of
deepseek-ai/Janus.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.convert.families.decoder import (
    EMBEDDING,
    DecoderNames,
    decoder_config,
    decoder_rules,
)
from jaxspec.convert.family import ComputedParam, Family, Overrides, Plan, heads_of
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors


@dataclass(frozen=True)
class _Release:
    """Tensor names of a release.

    Attributes:
      text: names of the language model.
      config_section: key of the language model's section of `config.json`.
      embedding: name of the embedding of image tokens.
      aligner: function that returns the names of the aligner's linear layers.
      head: names of the two linear layers of the output head for image tokens.
      vqmodel: regular expression of the names of the tokenizer's tensors.
    """

    text: DecoderNames
    config_section: str
    embedding: str
    aligner: Callable[[Source], list[str]]
    head: tuple[str, str]
    vqmodel: str


def _released_aligner(source: Source) -> list[str]:
    """Returns every second module: linear layers alternate with activations."""
    names = [f"gen_aligner.layers.{i}" for i in range(0, 20, 2)]
    return [name for name in names if name + ".weight" in source.tensors]


def _hf_aligner(source: Source) -> list[str]:
    root = "model.generation_aligner."
    hidden_layers = count_tensors(source, root + "hidden_layers.{i}.weight")
    return [root + "fc1", *(f"{root}hidden_layers.{i}" for i in range(hidden_layers))]


HF = _Release(
    DecoderNames("model.language_model."),
    "text_config",
    "model.generation_embeddings.weight",
    _hf_aligner,
    ("model.generation_head.proj_out", "model.generation_head.vision_head"),
    r"model\.vqmodel\..*",
)
RELEASED = _Release(
    DecoderNames("language_model.model.", "language_model.lm_head.weight"),
    "language_config",
    "gen_embed.weight",
    _released_aligner,
    ("gen_head.output_mlp_projector", "gen_head.vision_head"),
    r"gen_vision_model\..*",
)


# Guidance of Janus's `generation_inference.py`.
PUBLISHED = {"generation": {"cfg_scale": 5.0}}


def _gelu(x: np.ndarray) -> np.ndarray:
    """Computes the exact GELU in float64."""
    from scipy.special import erf

    return 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))


def apply_aligner(embedding: np.ndarray, *layers: np.ndarray) -> np.ndarray:
    """Applies linear layers with GELUs between them, in float64.

    Args:
      embedding: embedding of image tokens `[V, E]`.
      layers: weight and bias of each layer, alternating.

    Returns:
      Embedding of image tokens in the language model, float32 `[V, D]`.
    """
    x = embedding.astype(np.float64)
    for i in range(0, len(layers), 2):
        x = _gelu(x) if i else x
        x = x @ layers[i].astype(np.float64).T + layers[i + 1].astype(np.float64)
    return x.astype(np.float32)


def _plan(release: _Release, source: Source, overrides: Overrides) -> Plan:
    text = release.text
    source_config = source.config.get(release.config_section, {})
    config = decoder_config(source, overrides, source_config, text.root, text.head)
    image_tokens = source.shape(release.embedding)[0]
    config = replace(
        config,
        vocab_size=image_tokens,
        extra_tokens=config.vocab_size,
        tied_head=False,
        head_width=source.shape(release.head[0] + ".weight")[0],
    )
    layers = release.aligner(source)
    names = [f"{name}.{kind}" for name in layers for kind in ("weight", "bias")]

    def embedding(text_embedding, image_embedding, *layers):
        aligned = apply_aligner(image_embedding, *layers)
        return np.concatenate([aligned.astype(text_embedding.dtype), text_embedding])

    rules = [r for r in decoder_rules(config, text) if r.target != "head"]
    for name, layer in zip(release.head, ("in", "out"), strict=True):
        rules.append(KeyRule(name + ".weight", f"head_{layer}", "linear"))
        rules.append(KeyRule(name + ".bias", f"head_{layer}_bias"))
    computed = {
        "embedding/embedding": ComputedParam(
            (text.root + EMBEDDING, release.embedding, *names), embedding
        )
    }
    ignored = (
        text.head.replace(".", r"\."),  # the output head for text
        release.vqmodel,
        r"(model\.)?(vision_model|aligner)\..*",
        r".*\.rotary_emb\.inv_freq",
    )
    return Plan(
        "prior",
        config,
        tuple(rules),
        heads_of(config),
        computed,
        ignored,
        metadata=PUBLISHED,
    )


def _family(name: str, release: _Release) -> Family:
    def plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
        return _plan(release, source, overrides)

    return Family(name, lambda s: release.embedding in s.tensors, plan)


FAMILIES = (_family("janus", HF), _family("janus-original", RELEASED))
