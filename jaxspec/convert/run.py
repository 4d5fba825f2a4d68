"""From files of another framework to a checkpoint: checked first, then in pieces."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from jaxspec.checkpoint import (
    KINDS,
    Checkpoint,
    abstract_params,
    digest_of,
    load_checkpoint,
    load_some,
    named_leaves,
    read_config,
    save_leaves,
)
from jaxspec.config import from_dict, to_dict
from jaxspec.convert.families import FAMILIES
from jaxspec.convert.family import Family, Given, Plan, Settings
from jaxspec.convert.mapping import Piece, place
from jaxspec.convert.reading.open import open_source
from jaxspec.convert.reading.stored import Source, printable
from jaxspec.convert.transforms import TRANSFORMS, Heads
from jaxspec.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    JaxspecError,
    NonFiniteError,
)
from jaxspec.sharding import placement
from jaxspec.spec.neighbours import neighbour_table

DTYPES = {
    "float32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
# Where a part of a bundle lies.
FOLDERS = {"prior": "prior", "tokenizer": "tokenizer", "text_encoder": "text_encoder"}
# LANTERN's k; one more neighbour is kept.
NEIGHBOURS = 1000
Progress = Callable[[int], object]


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
    """

    source: Source
    family: Family
    plan: Plan
    pieces: dict[str, list[Piece]]
    lines: tuple[Line, ...]
    target_digest: str | None = None

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


def detect(source: Source) -> list[Family]:
    """The families that recognise a source: one for each kind of part in it.

    Raises:
      ConfigError: none does.
    """
    found = [family for family in FAMILIES.values() if family.detect(source)]
    models = [f for f in found if not f.name.startswith("vq-")][:1]
    tokenizers = [f for f in found if f.name.startswith("vq-")][:1]
    if not found:
        names = ", ".join(list(source.tensors)[:3])
        raise ConfigError(
            f"'{source.name}' is of no known family (its tensors: {names}, ...; its "
            f"model_type: {source.config.get('model_type')}); name one with --family: "
            f"{', '.join(FAMILIES)}"
        )
    return models + tokenizers


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
    try:
        plan = family.plan(source, given or {}, target)
        from_dict(KINDS[plan.kind], to_dict(plan.config))  # each field of its type
    except JaxspecError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(
            f"'{source.name}': its config.json or its shapes make no sense for "
            f"{family.name} ({type(e).__name__}: {printable(str(e))}); check which "
            "files lie together, or name another --family"
        ) from None
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
                if any(np.dtype(k).kind in "iub" for k in kinds):
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
        if any(np.dtype(kind).kind in "iub" for kind in kinds):
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
    return Conversion(source, family, plan, pieces, tuple(lines), digest)


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


def arrays(
    conversion: Conversion, progress: Progress = lambda count: None
) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter, one at a time, in the order of `lines`.

    Raises:
      NonFiniteError: a tensor holds NaN or infinity.
    """
    source, plan = conversion.source, conversion.plan

    def read(name: str) -> np.ndarray:
        try:
            x = source.tensors[name].read()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"'{source.tensors[name].file}': {name} cannot be read "
                f"({printable(str(error))}); fetch it again"
            ) from None
        if np.dtype(x.dtype).kind not in "iub" and not _finite(x):
            raise NonFiniteError(
                f"'{source.tensors[name].file}': {name} holds NaN or infinity; the "
                "weights are unusable, fetch them again"
            )
        return x

    for line in conversion.lines:
        dtype = np.dtype(line.dtype)
        if line.ours in plan.derived:
            made = plan.derived[line.ours]
            whole = np.asarray(made.make(*(read(n) for n in made.names)))
            whole = whole.astype(dtype, copy=False)
        else:
            whole = _assembled(conversion, line, read)
        if whole.shape != line.shape:
            raise ConfigError(
                f"'{source.name}' makes {line.ours} {whole.shape}, not {line.shape}"
            )
        if dtype.kind not in "iu" and not _finite(whole):
            raise NonFiniteError(
                f"'{source.name}': {line.ours} does not fit into {dtype}; keep a wider "
                "--dtype"
            )
        progress(whole.nbytes)
        yield line.ours, whole


def _assembled(
    conversion: Conversion, line: Line, read: Callable[[str], np.ndarray]
) -> np.ndarray:
    """A parameter from its tensors: a view of the only one, or a new array."""
    pieces, dtype = conversion.pieces[line.ours], np.dtype(line.dtype)

    def part(piece: Piece) -> np.ndarray:
        there = TRANSFORMS[piece.rule.transform].there
        x = there(read(piece.name), conversion.plan.heads)
        with np.errstate(over="ignore"):  # told by the caller
            return x.astype(dtype, copy=False)

    if len(pieces) == 1:
        return part(pieces[0])
    whole, begin = np.empty(line.shape, dtype), 0
    for piece in pieces:
        x = part(piece)
        axis = piece.rule.axis % whole.ndim
        end = begin + x.shape[axis]
        whole[(slice(None),) * axis + (slice(begin, end),)] = x
        begin = end
        del x  # before the next one is read
    return whole


def _blocks(x: np.ndarray, most: int = 1 << 22) -> Iterator[np.ndarray]:
    """Contiguous copies of rows, a few at a time."""
    rows = x.reshape(1) if x.ndim == 0 else x
    step = max(1, most * len(rows) // max(x.size, 1))
    for i in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[i : i + step])


def _finite(x: np.ndarray) -> bool:
    return all(
        bool(np.isfinite(block.astype(np.float32, copy=False)).all())
        for block in _blocks(x)
    )


@dataclass(frozen=True)
class Written:
    """What a conversion wrote.

    Attributes:
      folder: of the checkpoint.
      family: by name.
      kind: of the checkpoint.
      tensors: that were read.
      parameters: numbers in them.
      bytes: written.
      digest: of the values, as the library tells checkpoints apart.
      left_out: things in the files that are no tensors.
    """

    folder: Path
    family: str
    kind: str
    tensors: int
    parameters: int
    bytes: int
    digest: str
    left_out: tuple[str, ...]


def convert(
    place: str | os.PathLike,
    bundle: str | os.PathLike,
    *,
    family: str | None = None,
    dtype: str | None = None,
    target: str | os.PathLike | None = None,
    given: Given | None = None,
    allow_objects: bool = False,
    mesh: Mesh | None = None,
    progress: Callable[[Conversion], Progress] = lambda conversion: lambda count: None,
) -> list[Written]:
    """Converts a model into a part of a bundle.

    Args:
      place: see `open_source`.
      bundle: folder; the part goes into `prior/`, `tokenizer/`, `text_encoder/` or
        `drafter/` in it.
      family: a key of `FAMILIES`; by default it is recognised.
      dtype: a key of `DTYPES`; by default as stored, at most float32.
      target: the converted model that a drafter drafts for; by default the bundle's.
      given: settings that the files do not tell, by name.
      allow_objects: see `read_torch`.
      mesh: see `make_mesh`; parameters are written from its devices, each part for
        itself, and can be read so. Simulated ones do as well.
      progress: called before each part is written; gives a function of bytes done.

    Raises:
      DataError: the files cannot be used.
      ConfigError: they do not fit the family.
      NonFiniteError: they hold NaN.
      CheckpointError: the bundle cannot be written.
    """
    written = []
    _keep_others_files(Path(place), Path(bundle))
    for conversion in prepare(
        place,
        bundle,
        family=family,
        dtype=dtype,
        target=target,
        given=given,
        allow_objects=allow_objects,
    ):
        _keep_what_is_no_checkpoint(conversion, Path(bundle))
        written.append(_write(conversion, Path(bundle), progress(conversion), mesh))
    return written


def prepare(
    place: str | os.PathLike,
    bundle: str | os.PathLike,
    *,
    family: str | None = None,
    dtype: str | None = None,
    target: str | os.PathLike | None = None,
    given: Given | None = None,
    allow_objects: bool = False,
) -> list[Conversion]:
    """What `convert` would do, without doing it; takes and raises the same."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"no family {family!r}; choose one of {', '.join(FAMILIES)}")
    source = open_source(place, allow_objects=allow_objects)
    families = detect(source) if family is None else [FAMILIES[family]]
    conversions, asked = [], set()
    for one in families:
        drafted = None
        if one.drafter:
            folder = Path(target) if target else Path(bundle) / "prior"
            if target or folder.is_dir():
                drafted = _target(folder)
        settings = Settings(given or {})
        if one.name.startswith("vq-"):
            _same_pictures(Path(bundle), source, settings)
        conversions.append(
            understand(source, one, given=settings, target=drafted, dtype=dtype)
        )
        asked |= settings.asked
    if unknown := sorted(set(given or {}) - asked):
        offer = ", ".join(sorted(asked)) or "nothing"
        raise ConfigError(
            f"--set {', '.join(unknown)}: '{source.name}' asks for {offer}"
        )
    return conversions


def _keep_others_files(place: Path, bundle: Path) -> None:
    """Refuses to replace the folder of the source, or one above it.

    Raises:
      ConfigError: says so.
    """
    if not place.exists():
        return
    source = place.resolve() if place.is_dir() else place.resolve().parent
    for part in (*FOLDERS.values(), "drafter"):
        target = (bundle / part).resolve()
        if target == source or target in source.parents:
            raise ConfigError(
                f"'{bundle / part}' would replace the source '{place}'; name another "
                "folder for the bundle"
            )


def _keep_what_is_no_checkpoint(conversion: Conversion, bundle: Path) -> None:
    """Refuses to replace a folder that is none of ours.

    Raises:
      ConfigError: says so.
    """
    folder = bundle / FOLDERS.get(conversion.plan.kind, "drafter")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        read_config(folder)
    except CheckpointError:
        raise ConfigError(
            f"'{folder}' is there and is no checkpoint of jaxspec; it is left as it "
            "is. Move it, or name another folder for the bundle"
        ) from None


def _target(folder: Path) -> Checkpoint:
    """What a drafter shares with its target; all of it, where its digest is unknown."""
    head = read_config(folder)
    if head.kind != "prior" or "digest" not in head.about:
        return load_checkpoint(folder, "prior")
    return replace(head, params=load_some(folder, ["embedding/embedding"]))


def _same_pictures(bundle: Path, source: Source, settings: dict[str, Any]) -> None:
    """A tokenizer makes pictures of the size that the bundle's prior draws."""
    if "image_size" in settings or not (bundle / "prior").is_dir():
        return
    prior = read_config(bundle / "prior").config
    if getattr(prior, "rope", None) == "grid":
        halvings = sum(n.endswith(".downsample.conv.weight") for n in source.tensors)
        settings["image_size"] = prior.grid * 2**halvings


def _write(
    conversion: Conversion,
    bundle: Path,
    progress: Progress,
    mesh: Mesh | None,
) -> Written:
    plan, source = conversion.plan, conversion.source
    about: dict[str, Any] = {
        **plan.about,
        "source": source.name,
        "family": conversion.family.name,
    }
    if source.revision:
        about["revision"] = source.revision
    if conversion.target_digest:
        about["target_digest"] = conversion.target_digest
    digest, codebook = hashlib.sha256(), []
    place = placement(mesh) if mesh else None

    def leaves() -> Iterator[tuple[str, np.ndarray | jax.Array]]:
        for path, x in arrays(conversion, progress):
            digest.update(path.encode())
            for block in _blocks(x):
                digest.update(block.reshape(-1).view(np.uint8).data)
            if path == "codebook":
                codebook.append(x.astype(np.float32))
            yield path, jax.device_put(x, place(path, x.shape)) if place else x

    def finish() -> Checkpoint:
        about["digest"] = digest.hexdigest()[:16]
        table = None
        if codebook and len(codebook[0]) > 3:
            table = neighbour_table(codebook[0], min(NEIGHBOURS, len(codebook[0]) - 2))
        return Checkpoint(plan.kind, plan.config, {}, about, table)

    folder = bundle / FOLDERS.get(plan.kind, "drafter")
    save_leaves(folder, leaves(), finish, _texts(source, plan.kind))
    return Written(
        folder,
        conversion.family.name,
        plan.kind,
        sum(len(line.theirs) for line in conversion.lines),
        conversion.parameters,
        conversion.bytes,
        about["digest"],
        source.left_out,
    )


def _texts(source: Source, kind: str) -> dict[str, str]:
    """Files that a part cannot do without: how a text encoder's captions are cut."""
    file = (source.folder or Path()) / "tokenizer.json"
    if kind != "text_encoder" or not file.is_file():
        return {}
    return {"tokenizer.json": file.read_text()}
