"""A source, understood: every tensor has its place, every shape was compared."""

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
from jaxspec.convert.family import Family, Given, Plan
from jaxspec.convert.mapping import Piece, place
from jaxspec.convert.planning import planned
from jaxspec.convert.reading.stored import Source
from jaxspec.convert.recorded import Recorded, check_unread
from jaxspec.convert.transforms import TRANSFORMS, Heads
from jaxspec.errors import ConfigError

DTYPES = {
    "float32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


@dataclass(frozen=True)
class Line:
    """One parameter in the table of a conversion.

    Attributes:
      ours: its path.
      theirs: names of the tensors that it is made of.
      how: the transform, or "computed".
      shape: of ours.
      dtype: of ours.
    """

    ours: str
    theirs: tuple[str, ...]
    how: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Conversion:
    """A source, understood: everything is checked but the numbers.

    Attributes:
      source: where it comes from.
      family: its family.
      plan: see `Plan`.
      pieces: the tensors of each parameter.
      lines: the same as a table, sorted by path.
      target_digest: of the target that a drafter was converted for.
      unread: entries of the source's config that played no part.
    """

    source: Source
    family: Family
    plan: Plan
    pieces: dict[str, list[Piece]]
    lines: tuple[Line, ...]
    target_digest: str | None = None
    unread: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of what will be written."""
        return sum(
            int(np.prod(line.shape, dtype=object)) * np.dtype(line.dtype).itemsize
            for line in self.lines
        )

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        return sum(int(np.prod(line.shape, dtype=object)) for line in self.lines)


def understand(
    source: Source,
    family: Family,
    *,
    given: Given | None = None,
    target: Checkpoint | None = None,
    dtype: str | None = None,
) -> Conversion:
    """Places every tensor and compares every shape; reads no weights.

    Raises:
      ConfigError: something has no place, is missing or has another shape.
    """
    if family.drafter and target is None:
        raise ConfigError(
            f"'{source.name}' is a drafter ({family.name}); convert its target first, "
            "into the same folder, or name it with --target"
        )
    config = Recorded(source.config)
    plan = planned(replace(source, config=config), family, given or {}, target)
    metadata = config[plan.part] if plan.part else config
    unread = () if "jaxspec" in config else check_unread(metadata, source.name)
    _no_larger_than_its_files(source, plan)
    like = dict(sorted(named_leaves(abstract_params(plan.kind, plan.config))))
    computed = plan.derived
    used = {name for derived in computed.values() for name in derived.names}
    for name in used:
        source.shape(name)  # it is there
    pieces = place(
        [name for name in source.tensors if name not in used],
        plan.rules,
        plan.ignored,
        {path: x.shape for path, x in like.items() if path not in computed},
        source.name,
    )
    lines, wrong = [], []
    for path, leaf in like.items():
        if path in computed:
            names = computed[path].names
            kind = str(leaf.dtype)
            if leaf.dtype == np.float32:  # a computed table is as its tensors are
                kinds = [source.tensors[n].dtype for n in names]
                kind = _dtype(kinds, dtype)
                if any(np.dtype(k).kind in "iubc" for k in kinds):
                    wrong.append(
                        f"{names[0]} holds {kinds[0]}, not floating-point numbers"
                    )
            lines.append(Line(path, names, "computed", leaf.shape, kind))
            continue
        have = pieces[path]
        shape = _shape(source, have, plan.heads)
        if shape != leaf.shape:
            names = ", ".join(f"{p.name} {source.shape(p.name)}" for p in have)
            wrong.append(f"{path} should be {leaf.shape}, but {names} make {shape}")
        kinds = [source.tensors[p.name].dtype for p in have]
        if any(np.dtype(kind).kind in "iubc" for kind in kinds):
            wrong.append(f"{have[0].name} holds {kinds[0]}, not floating-point numbers")
            continue
        how = have[0].rule.transform
        names = tuple(p.name for p in have)
        lines.append(Line(path, names, how, leaf.shape, _dtype(kinds, dtype)))
    if wrong:
        more = f"\n  and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise ConfigError(
            f"'{source.name}' does not fit {family.name}:\n  "
            + "\n  ".join(wrong[:6])
            + more
        )
    digest = None
    if family.drafter and target:
        digest = digest_of(target)
    return Conversion(source, family, plan, pieces, tuple(lines), digest, unread)


def _no_larger_than_its_files(source: Source, plan: Plan) -> None:
    """Refuses a config that promises more layers than there are tensors.

    Raises:
      ConfigError: before anything is built from it.
    """
    config = getattr(plan.config, "config", plan.config)
    for name in ("layers", "encoder_blocks", "decoder_blocks", "heads", "blocks"):
        value = getattr(config, name, 0)
        most = len(source.tensors) if name not in ("heads", "blocks") else 1000
        if isinstance(value, int) and value > most:
            raise ConfigError(
                f"'{source.name}': its config says {name}={value}, but there are "
                f"{len(source.tensors)} tensors"
            )


def _dtype(kinds: list[Any], wanted: str | None) -> str:
    """The dtype of a parameter: as asked for, or as stored, at most float32."""
    if wanted is not None:
        return np.dtype(DTYPES[wanted]).name
    name = np.dtype(kinds[0]).name if kinds else "float32"
    return name if name in ("float32", "bfloat16", "float16") else "float32"


def _shape(source: Source, pieces: list[Piece], heads: Heads) -> tuple[int, ...] | None:
    """The shape that pieces make together; None if they do not go together."""
    parts = []
    for piece in pieces:
        dummy = np.broadcast_to(np.int8(0), source.shape(piece.name))
        try:
            parts.append(TRANSFORMS[piece.rule.transform].there(dummy, heads).shape)
        except (ValueError, IndexError):
            return None
    first, axis = parts[0], pieces[0].rule.axis
    if len(parts) == 1:
        return first
    axis %= len(first)
    rest = {(*part[:axis], *part[axis + 1 :]) for part in parts}
    if len(rest) > 1:
        return None
    along = sum(part[axis] for part in parts)
    return (*first[:axis], along, *first[axis + 1 :])
