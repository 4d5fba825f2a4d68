"""Checked plan of a conversion: the tensors, shape and dtype of every parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from jaxspec.checkpoint import (
    Checkpoint,
    abstract_params,
    digest_of,
    named_leaves,
)
from jaxspec.convert.family import Family, Overrides, Plan
from jaxspec.convert.mapping import MappedTensor, assign_tensors
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import make_plan
from jaxspec.convert.source_config import TrackedConfig, check_unread
from jaxspec.convert.transforms import TRANSFORMS, Heads
from jaxspec.errors import ConfigError

DTYPES = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


@dataclass(frozen=True)
class ParamEntry:
    """One parameter in the table of a conversion.

    Attributes:
      path: path of the parameter.
      tensors: names of the tensors that it is made of.
      transform: key of `TRANSFORMS`, or "computed".
      shape: shape of the parameter.
      dtype: name of the parameter's dtype.
    """

    path: str
    tensors: tuple[str, ...]
    transform: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Conversion:
    """A planned conversion, of which everything but the values has been checked.

    Attributes:
      source: source of the model.
      family: family of the source.
      plan: configuration and rules from the family.
      mapping: tensors of each parameter that is not computed, by path.
      entries: table of all parameters, sorted by path.
      target_digest: digest of the target that a drafter is converted for.
      unused_config: names of entries of the source's config that had no effect.
    """

    source: Source
    family: Family
    plan: Plan
    mapping: dict[str, list[MappedTensor]]
    entries: tuple[ParamEntry, ...]
    target_digest: str | None = None
    unused_config: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all parameters in bytes, as they will be written."""
        return sum(
            int(np.prod(entry.shape, dtype=object)) * np.dtype(entry.dtype).itemsize
            for entry in self.entries
        )

    @property
    def parameters(self) -> int:
        """Number of elements of all parameters."""
        return sum(int(np.prod(entry.shape, dtype=object)) for entry in self.entries)


def plan_conversion(
    source: Source,
    family: Family,
    *,
    overrides: Overrides | None = None,
    target: Checkpoint | None = None,
    dtype: str | None = None,
) -> Conversion:
    """Maps every tensor to a parameter and compares all shapes; reads no weights.

    Args:
      source: source of the model.
      family: family of the source.
      overrides: settings given by the user.
      target: checkpoint of the model that a drafter was trained for.
      dtype: key of `DTYPES`; by default the stored dtype, at most float32.

    Raises:
      ConfigError: a tensor or parameter is left over, or a shape or dtype is wrong.
    """
    if family.drafter and target is None:
        raise ConfigError(
            f"'{source.name}' is a drafter ({family.name}); convert its target first, "
            "into the same folder, or name it with --target"
        )
    config = TrackedConfig(source.config)
    plan = make_plan(replace(source, config=config), family, overrides or {}, target)
    section = config[plan.config_section] if plan.config_section else config
    unused = () if "jaxspec" in config else check_unread(section, source.name)
    _check_sizes(source, plan)
    params = dict(
        sorted(named_leaves(abstract_params(plan.kind, plan.config, plan.target)))
    )
    computed = plan.computed
    inputs = {name for param in computed.values() for name in param.tensors}
    for name in inputs:
        source.shape(name)  # raises if the tensor is missing
    mapping = assign_tensors(
        [name for name in source.tensors if name not in inputs],
        plan.rules,
        plan.ignored,
        [path for path in params if path not in computed],
        source.name,
    )
    entries, problems = _match_shapes(source, plan, params, mapping, dtype)
    if problems:
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ConfigError(
            f"'{source.name}' does not fit {family.name}:\n  "
            + "\n  ".join(problems[:6])
            + more
        )
    digest = digest_of(target) if family.drafter and target else None
    return Conversion(source, family, plan, mapping, entries, digest, unused)


def _match_shapes(
    source: Source,
    plan: Plan,
    params: Mapping[str, Any],
    mapping: Mapping[str, Sequence[MappedTensor]],
    dtype: str | None,
) -> tuple[tuple[ParamEntry, ...], list[str]]:
    """Compares the shape that tensors make with that of each parameter.

    Args:
      source: source of the model.
      plan: configuration and rules from the family.
      params: parameters without values, by path.
      mapping: tensors of each parameter that is not computed, by path.
      dtype: key of `DTYPES`; None for the stored dtype.

    Returns:
      Entries of the parameters, and the problems, such as wrong shapes.
    """
    entries: list[ParamEntry] = []
    problems: list[str] = []
    for path, leaf in params.items():
        if path in plan.computed:
            names, transform = plan.computed[path].tensors, "computed"
        else:
            tensors = mapping[path]
            names, transform = tuple(t.name for t in tensors), tensors[0].rule.transform
            shape = _result_shape(source, tensors, plan.heads)
            if shape != leaf.shape:
                made = ", ".join(f"{name} {source.shape(name)}" for name in names)
                problems.append(
                    f"{path} should be {leaf.shape}, but {made} make {shape}"
                )
        result_dtype = str(leaf.dtype)
        if transform != "computed" or leaf.dtype == np.float32:  # else computed ids
            dtypes = [source.tensors[name].dtype for name in names]
            result_dtype = _result_dtype(dtypes, dtype)
            if any(_is_no_float(d) for d in dtypes):
                problems.append(
                    f"{names[0]} holds {dtypes[0]}, not floating-point numbers"
                )
        entries.append(ParamEntry(path, names, transform, leaf.shape, result_dtype))
    return tuple(entries), problems


def _check_sizes(source: Source, plan: Plan) -> None:
    """Refuses a config with more layers than tensors, before shapes are computed.

    Raises:
      ConfigError: a number of layers, blocks or heads is implausibly large.
    """
    for name in ("layers", "encoder_blocks", "decoder_blocks", "heads", "blocks"):
        value = getattr(plan.config, name, 0)
        limit = len(source.tensors) if name not in ("heads", "blocks") else 1000
        if isinstance(value, int) and value > limit:
            raise ConfigError(
                f"'{source.name}': its config has {name}={value}, but there are only "
                f"{len(source.tensors)} tensors"
            )


def _is_no_float(dtype: Any) -> bool:
    return np.dtype(dtype).kind in "iubc"


def _result_dtype(stored: Sequence[Any], choice: str | None) -> str:
    """Returns a parameter's dtype: the user's choice, or as stored, at most float32."""
    if choice is not None:
        return np.dtype(DTYPES[choice]).name
    name = np.dtype(stored[0]).name if stored else "float32"
    return name if name in ("float32", "bfloat16", "float16") else "float32"


def _result_shape(
    source: Source, tensors: Sequence[MappedTensor], heads: Heads
) -> tuple[int, ...] | None:
    """Returns the shape that tensors make together; None if they do not fit."""
    shapes = []
    for tensor in tensors:
        dummy = np.broadcast_to(np.int8(0), source.shape(tensor.name))
        try:
            to_jax = TRANSFORMS[tensor.rule.transform].to_jax
            shapes.append(to_jax(dummy, heads).shape)
        except (ValueError, IndexError):
            return None
    first, axis = shapes[0], tensors[0].rule.axis
    if len(shapes) == 1:
        return first
    axis %= len(first)
    other_axes = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(other_axes) > 1:
        return None
    size = sum(shape[axis] for shape in shapes)
    return (*first[:axis], size, *first[axis + 1 :])
