"""Janus and Janus-Pro as generators of images.

The language model reads text through its own table and codes through another, behind
a small network, which is worked out once per code here; its output head for codes is a
small network, too. Ours has codes as its vocabulary and text behind it, as tokens that
are read and never drawn: the text token `t` is `codes + t`.

Keys: transformers `JanusForConditionalGeneration`, and those of the first release.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.convert.families.llama import (
    EMBEDDING,
    Names,
    decoder_config,
    decoder_rules,
)
from jaxspec.convert.family import Derived, Family, Given, Plan, count, heads_of
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.stored import Source


@dataclass(frozen=True)
class _Release:
    """Names of a release.

    Attributes:
      text: of the language model.
      key: of its part in the config.
      codes: of the table of codes.
      aligner: of the linear maps behind it; `{i}` counts them.
      head: of the two linear maps to codes.
      vqmodel: of the tokenizer, a model of its own.
    """

    text: Names
    key: str
    codes: str
    aligner: Callable[[Source], list[str]]
    head: tuple[str, str]
    vqmodel: str


def _released_aligner(source: Source) -> list[str]:
    """Maps and activations are numbered alike: every second one is a map."""
    names = [f"gen_aligner.layers.{i}" for i in range(0, 20, 2)]
    return [name for name in names if name + ".weight" in source.tensors]


def _hf_aligner(source: Source) -> list[str]:
    root = "model.generation_aligner."
    more = count(source, root + "hidden_layers.{i}.weight")
    return [root + "fc1", *(f"{root}hidden_layers.{i}" for i in range(more))]


HF = _Release(
    Names("model.language_model."),
    "text_config",
    "model.generation_embeddings.weight",
    _hf_aligner,
    ("model.generation_head.proj_out", "model.generation_head.vision_head"),
    r"model\.vqmodel\..*",
)
RELEASED = _Release(
    Names("language_model.model.", "language_model.lm_head.weight"),
    "language_config",
    "gen_embed.weight",
    _released_aligner,
    ("gen_head.output_mlp_projector", "gen_head.vision_head"),
    r"gen_vision_model\..*",
)


def _gelu(x: np.ndarray) -> np.ndarray:
    """Exact GELU, float64."""
    from scipy.special import erf

    return 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))


def aligned(codes: np.ndarray, *maps: np.ndarray) -> np.ndarray:
    """Codes through linear maps (weight, bias, weight, ...) with GELUs between."""
    x = codes.astype(np.float64)
    for i in range(0, len(maps), 2):
        x = _gelu(x) if i else x
        x = x @ maps[i].astype(np.float64).T + maps[i + 1].astype(np.float64)
    return x.astype(np.float32)


def _plan(release: _Release, source: Source, given: Given) -> Plan:
    text = release.text
    said = source.config.get(release.key, {})
    config = decoder_config(source, given, said, text.root, text.head)
    codes = source.shape(release.codes)[0]
    config = replace(
        config,
        vocab_size=codes,
        extra_tokens=config.vocab_size,
        tied_head=False,
        head_width=source.shape(release.head[0] + ".weight")[0],
    )
    maps = release.aligner(source)
    names = [f"{name}.{kind}" for name in maps for kind in ("weight", "bias")]

    def table(text_rows, code_rows, *weights):
        rows = aligned(code_rows, *weights)
        return np.concatenate([rows.astype(text_rows.dtype), text_rows])

    rules = [r for r in decoder_rules(config, text) if r.ours != "head"]
    for theirs, ours in zip(release.head, ("in", "out"), strict=True):
        rules.append(Rule(theirs + ".weight", f"head_{ours}", "linear"))
        rules.append(Rule(theirs + ".bias", f"head_{ours}_bias"))
    derived = {
        "embedding/embedding": Derived(
            (text.root + EMBEDDING, release.codes, *names), table
        )
    }
    ignored = (
        text.head.replace(".", r"\."),  # what it says in text
        release.vqmodel,
        r"(model\.)?(vision_model|aligner)\..*",
        r".*\.rotary_emb\.inv_freq",
    )
    return Plan("prior", config, tuple(rules), heads_of(config), derived, ignored)


def _family(name: str, release: _Release) -> Family:
    def plan(source: Source, given: Given, target: Checkpoint | None) -> Plan:
        return _plan(release, source, given)

    return Family(name, lambda s: release.codes in s.tensors, plan)


FAMILIES = (_family("janus", HF), _family("janus-original", RELEASED))
