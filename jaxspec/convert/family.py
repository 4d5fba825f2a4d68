"""Interface between model families and the converter.

A `Family` recognizes its files and makes a `Plan`: the configuration of the model, and
rules that map tensor names to parameters. Families that can be exported also make an
`ExportPlan`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.sets import PLAIN
from jaxspec.convert.reading.source import Source
from jaxspec.convert.transforms import Heads

# Settings given by the user (`--set KEY=VALUE`), which override those of the files.
Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class ComputedParam:
    """A parameter that is computed rather than copied.

    Attributes:
      tensors: names of the tensors that it is computed from.
      compute: function of their arrays, in the stored layout, that returns the
        parameter.
    """

    tensors: tuple[str, ...]
    compute: Callable[..., np.ndarray]


@dataclass(frozen=True)
class Plan:
    """Description of the checkpoint that a source is converted to.

    Attributes:
      kind: kind of the checkpoint, a key of `jaxspec.checkpoint.KINDS`.
      config: configuration of the model.
      rules: mapping of tensor names to parameters.
      heads: attention heads, for the transforms.
      computed: computed parameters by path.
      ignored: regular expressions of tensor names that are skipped.
      metadata: additional entries of the checkpoint metadata.
      config_section: key of the section of `config.json` that describes this model,
        if other sections describe other models; None for the whole file.
      target: configuration of a drafter's target; None for other models.
    """

    kind: str
    config: Any
    rules: tuple[KeyRule, ...]
    heads: Heads = Heads()
    computed: Mapping[str, ComputedParam] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    config_section: str | None = None
    target: TransformerConfig | None = None


@dataclass(frozen=True)
class ExportPlan:
    """Description of the files that a checkpoint is exported to.

    Attributes:
      rules: mapping of tensor names to parameters, applied in reverse.
      config: contents of `config.json`. Its entry "jaxspec" is the configuration of
        the model in this library, which `exported_config` reads back.
      heads: attention heads, for the transforms.
      extra_tensors: tensors by name that no rule produces.
      omitted: paths of parameters that are not written, because an extra tensor or an
        entry of the config replaces them.
    """

    rules: tuple[KeyRule, ...]
    config: dict[str, Any]
    heads: Heads = Heads()
    extra_tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    omitted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Models whose files have the same layout.

    Attributes:
      name: name for `--family`.
      detect: predicate that recognizes a source by its tensor names and its config.
      plan: function `(source, overrides, target)` that returns the `Plan`. `target` is
        the checkpoint of the model that a drafter was trained for, None for others.
      drafter: whether the models are drafters, which need that target.
      export: function that returns the `ExportPlan` of a checkpoint; None if the
        family cannot be exported.
      weights: names of sets of weights in the order in which the official loader
        looks for them; see `reading.sets`.
    """

    name: str
    detect: Callable[[Source], bool]
    plan: Callable[[Source, Overrides, Checkpoint | None], Plan]
    drafter: bool = False
    export: Callable[[Checkpoint], ExportPlan] | None = None
    weights: tuple[str, ...] = PLAIN


def heads_of(config: Any) -> Heads:
    """Returns the attention heads of a decoder's or drafter's configuration."""
    return Heads(config.head_size, config.num_kv_heads, config.heads)
