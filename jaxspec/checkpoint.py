"""Checkpoints on disk: `config.json` beside an orbax `params/` folder.

A tokenizer may bring `neighbours.npz`, the nearest codes of its codebook.

The only module that imports orbax and its storage, tensorstore, and only inside the
functions that need them.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import (
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
    from_dict,
    to_dict,
)
from jaxspec.drafters.kinds import DRAFTERS
from jaxspec.errors import CheckpointError, ConfigError, NonFiniteError
from jaxspec.models.classifier import Classifier, ClassifierConfig
from jaxspec.models.t5 import TextEncoder
from jaxspec.models.tokenizer import Tokenizer
from jaxspec.models.transformer import Transformer
from jaxspec.spec.neighbours import Neighbours
from jaxspec.typing import Params

FORMAT = 2
NEIGHBOURS = "neighbours.npz"
# A sharding for all parameters, or one for each by path and shape.
Placement = (
    jax.sharding.Sharding
    | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
    | None
)
# Arrays are stored in pieces of at most this size.
PIECE_BYTES = 1 << 23
# Larger models are written in parts of about this size.
PART_BYTES = 1 << 26
KINDS = {
    "tokenizer": TokenizerConfig,
    "prior": TransformerConfig,
    "classifier": ClassifierConfig,
    "text_encoder": TextEncoderConfig,
    **DRAFTERS,
}


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk or in memory.

    Attributes:
      kind: a key of `KINDS`.
      config: the frozen configuration of that kind (a drafter's holds its target's).
      params: nested dict of arrays.
      about: everything else worth keeping: data, licence, command, device, steps,
        metrics, class names.
      neighbours: of a tokenizer's codes, if it was saved with them.
    """

    kind: str
    config: Any
    params: Params
    about: dict[str, Any] = field(default_factory=dict)
    neighbours: Neighbours | None = None


def save(
    path: str | os.PathLike,
    checkpoint: Checkpoint,
    notes: dict[str, str] | None = None,
) -> None:
    """Writes a checkpoint folder, atomically replacing one that is there.

    A killed save leaves the old folder whole. `notes` are text files to put beside the
    parameters, by name.

    Raises:
      CheckpointError: the place cannot be written.
    """
    about = {**checkpoint.about, "digest": params_digest(checkpoint.params)}
    with _replacing(Path(path)) as fresh:
        _write_tree(fresh / "params", checkpoint.params)
        _write_notes(fresh, replace(checkpoint, about=about), notes)


def _write_notes(
    folder: Path, checkpoint: Checkpoint, notes: dict[str, str] | None
) -> None:
    """Everything but the parameters."""
    from jaxspec import __version__

    record = {
        "format": FORMAT,
        "jaxspec": __version__,
        "kind": checkpoint.kind,
        "config": to_dict(checkpoint.config),
        "about": checkpoint.about,
    }
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n")
    if checkpoint.neighbours is not None:
        _write_neighbours(folder / NEIGHBOURS, checkpoint.neighbours)
    for name, text in (notes or {}).items():
        (folder / name).write_text(text)


def save_leaves(
    path: str | os.PathLike,
    leaves: Iterable[tuple[str, np.ndarray | jax.Array]],
    finish: Callable[[], Checkpoint],
    notes: dict[str, str] | None = None,
    part_bytes: int = PART_BYTES,
) -> None:
    """`save` for parameters that do not fit into memory together.

    Args:
      path: folder; replaced atomically.
      leaves: parameters by path; no more than `part_bytes` of them, and the next, are
        held at a time. What is divided among devices is stored in as many pieces, so
        that each can read its own.
      finish: called behind the last one; gives everything but the parameters.
      notes: text files to put beside the parameters, by name.
      part_bytes: size of the parts that are written.

    Raises:
      CheckpointError: the place cannot be written.
    """
    path = Path(path)
    with _replacing(path) as fresh:
        _write_parts(fresh / "params", leaves, part_bytes)
        _write_notes(fresh, finish(), notes)


def read_config(path: str | os.PathLike) -> Checkpoint:
    """Reads `config.json` alone; `params` of the result is empty.

    Raises:
      CheckpointError: the folder or file is missing or unreadable, or newer than
        this library.
    """
    path = recover(path)
    file = path / "config.json"
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint folder at '{path}'; check the path")
    try:
        record = json.loads(file.read_text())
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"'{path}' has format {record['format']}; this jaxspec reads format "
                f"{FORMAT}: install a matching version"
            )
        kind = record["kind"]
        config = from_dict(KINDS[kind], record["config"])
        return Checkpoint(kind, config, {}, dict(record.get("about", {})))
    except FileNotFoundError:
        raise CheckpointError(
            f"'{path}' has no config.json; it is not a jaxspec checkpoint"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"'{file}' is damaged or not a jaxspec config ({error!r}); fetch it again"
        ) from None


def load_checkpoint(
    path: str | os.PathLike,
    kind: str | None = None,
    *,
    sharding: Placement = None,
    dtype: Any = None,
) -> Checkpoint:
    """Reads a checkpoint.

    Args:
      path: a folder written by `save`.
      kind: refuse any other kind.
      sharding: of all parameters, or of each by its path and shape; by default
        everything is put onto the first device.
      dtype: of floating-point parameters; by default as saved.

    Raises:
      CheckpointError: missing, damaged, of another kind, or not of the shapes its
        configuration asks for.
      NonFiniteError: a parameter holds NaN or infinity.
    """
    head = read_config(path)
    if kind is not None and head.kind != kind:
        raise CheckpointError(f"'{path}' holds a {head.kind}, not a {kind}")
    like = abstract_params(head.kind, head.config)
    params = _read_tree(Path(path) / "params", like, sharding, dtype)
    for name, x in named_leaves(params):
        if not bool(jnp.isfinite(x).all()):
            raise NonFiniteError(
                f"'{path}': parameter {name} holds NaN or infinity; "
                "the checkpoint is unusable, fetch or train it again"
            )
    neighbours = None
    if head.kind == "tokenizer" and (Path(path) / NEIGHBOURS).is_file():
        codes = head.config.codebook_size
        neighbours = _read_neighbours(Path(path) / NEIGHBOURS, codes)
    return Checkpoint(head.kind, head.config, params, head.about, neighbours)


def load_some(path: str | os.PathLike, names: Iterable[str]) -> Params:
    """Some parameters of a checkpoint, read with as little of the rest as may be.

    Args:
      path: a folder written by `save` or `save_leaves`.
      names: of parameters, by path.

    Raises:
      CheckpointError: it cannot be read, or lacks one of them.
    """
    head, names = read_config(path), set(names)
    like = dict(named_leaves(abstract_params(head.kind, head.config)))
    folder, found = Path(path) / "params", {}
    for part in sorted(folder.glob("part_*")) or [folder]:
        with _quiet():
            here = dict(named_leaves(_metadata(part)))
        if names & set(here):
            some = _nested({name: like[name] for name in here if name in like})
            leaves = named_leaves(_read_tree(part, some))
            found |= {name: x for name, x in leaves if name in names}
    if missing := names - set(found):
        raise CheckpointError(f"'{path}' has no {_some(sorted(missing))}")
    return _nested(found)


def abstract_params(kind: str, config: Any) -> Params:
    """Shapes and dtypes of a model's parameters."""
    init = {
        "tokenizer": lambda key: Tokenizer(config).init(key),
        "prior": lambda key: Transformer(config).init(key),
        "classifier": lambda key: Classifier(config).init(key),
        "text_encoder": lambda key: TextEncoder(config).init(key),
        **{name: lambda key: config.init_params(key) for name in DRAFTERS},
    }[kind]
    return jax.eval_shape(init, jax.random.key(0))


def save_state(
    path: str | os.PathLike, state: Any, notes: dict[str, str] | None = None
) -> None:
    """Writes any tree of arrays (a training state) and text files, atomically."""
    with _replacing(Path(path)) as fresh:
        _write_tree(fresh / "state", state)
        for name, text in (notes or {}).items():
            (fresh / name).write_text(text)


def load_state(path: str | os.PathLike, like: Any) -> Any:
    """Reads what `save_state` wrote, with the structure and shapes of `like`.

    Where `like` holds arrays that lie on a mesh, so do those that are read.
    """
    where = {name: getattr(x, "sharding", None) for name, x in named_leaves(like)}
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return _read_tree(
        recover(path) / "state",
        jax.eval_shape(lambda x: x, like),
        lambda name, shape: where[name] or device,
    )


def recover(path: str | os.PathLike) -> Path:
    """Finishes a replacement that was cut off between its two renames."""
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    if old.is_dir() and not path.exists():
        old.rename(path)
    return path


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yields a fresh sibling folder that takes `path`'s place when all went well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        os.chmod(fresh, 0o755)
    except OSError as error:
        raise CheckpointError(f"cannot write '{path}': {error.strerror}") from None
    try:
        yield fresh
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        fresh.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"cannot write '{path}': {error.strerror}") from None
    finally:
        recover(path)
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax's progress lines and stray tracebacks off the user's screen.

    They come from other threads and from C++, so the file behind stderr is switched.
    """
    logger = logging.getLogger("absl")
    level, kept = logger.level, os.dup(2)
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logger.setLevel(level)


def _write_tree(path: Path, tree: Any) -> None:
    import orbax.checkpoint as ocp

    # In pieces, so that a device of a mesh reads little more than its part.
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE_BYTES), tree)
    with _quiet(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree, save_args=pieces)
    # orbax leaves the absolute path in a note; a checkpoint should not tell it.
    for note in path.rglob("commit_success.txt"):
        note.write_text("committed\n")


def _write_parts(
    path: Path,
    leaves: Iterable[tuple[str, np.ndarray | jax.Array]],
    part_bytes: int,
) -> None:
    """One tree, or several in numbered folders that make one together."""
    held: dict[str, np.ndarray | jax.Array] = {}
    count = size = 0
    for name, x in leaves:
        if held and size + x.nbytes > part_bytes:
            _write_tree(path / f"part_{count}", _nested(held))
            held, size, count = {}, 0, count + 1
        held[name] = x
        size += x.nbytes
    _write_tree(path / f"part_{count}" if count else path, _nested(held))


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dicts from leaves by path."""
    tree: dict[str, Any] = {}
    for name, x in leaves.items():
        *above, last = name.split("/")
        here = tree
        for key in above:
            here = here.setdefault(key, {})
        here[last] = x
    return tree


def _read_tree(
    path: Path, like: Any, sharding: Placement = None, dtype: Any = None
) -> Any:
    """Restores onto `like`; a mismatch is one message, told before orbax reads.

    `sharding` is as in `load_checkpoint`; `dtype` casts floats.
    """
    import orbax.checkpoint as ocp

    if not path.is_dir():
        raise CheckpointError(f"'{path}' is missing; the checkpoint is incomplete")
    parts = sorted(path.glob("part_*")) or [path]
    with _quiet(), ocp.StandardCheckpointer() as checkpointer:
        try:
            if jax.process_count() == 1:  # of several, each reads its part alone
                for part in parts:
                    _read_values(part)
        except Exception as error:
            raise _damaged(path, error) from None
        found = [dict(named_leaves(_metadata(part))) for part in parts]
        if len(parts) == 1:  # a tree may hold lists and the like
            _compare(path, found[0], like)
            target = _target(like, found[0], sharding, dtype)
            return _restored(checkpointer, path, path, target)
        _compare(path, {k: v for part in found for k, v in part.items()}, like)
        shapes, whole = dict(named_leaves(like)), {}
        for part, names in zip(parts, found, strict=True):
            some = _nested({name: shapes[name] for name in names})
            target = _target(some, names, sharding, dtype)
            whole |= dict(named_leaves(_restored(checkpointer, path, part, target)))
    leaves = [whole[name] for name, _ in named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _metadata(path: Path) -> Any:
    """The tree of shapes and dtypes that orbax wrote."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.metadata(path.absolute()).item_metadata.tree
        except Exception:
            raise CheckpointError(
                f"'{path}' is damaged (its metadata cannot be read); fetch it again"
            ) from None


def _target(
    like: Any, found: Mapping[str, Any], sharding: Placement, dtype: Any
) -> Any:
    """What a tree shall be restored as: shapes, dtypes and places."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def leaf(name: str, x: Any) -> jax.ShapeDtypeStruct:
        kind = found[name].dtype
        if dtype is not None and jnp.issubdtype(kind, jnp.floating):
            kind = jnp.dtype(dtype)
        where = sharding(name, x.shape) if callable(sharding) else sharding or device
        return jax.ShapeDtypeStruct(x.shape, kind, sharding=where)

    leaves = [leaf(name, x) for name, x in named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _restored(checkpointer: Any, path: Path, part: Path, target: Any) -> Any:
    try:
        return checkpointer.restore(part.absolute(), target)
    except Exception as error:
        raise _damaged(path, error) from None


def _read_values(path: Path) -> None:
    """Reads every stored value, so that one which is cut off is told in peace.

    orbax reads all arrays at once and, when one fails, abandons the other reads; these
    complain on stderr, from other threads and at random moments.
    """
    import tensorstore as ts

    for file in path.glob("array_metadatas/*"):
        json.loads(file.read_text())
    base = {"driver": "file", "path": f"{path.absolute()}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    for key in store.list().result():
        store.read(key).result()


def _write_neighbours(file: Path, table: Neighbours) -> None:
    small = np.uint16 if table.ids.shape[0] <= 1 << 16 else np.int32
    ids, distances = np.asarray(table.ids, small), np.asarray(table.distances)
    np.savez_compressed(file, ids=ids, distances=distances)


def _read_neighbours(file: Path, codes: int) -> Neighbours:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            ids, distances = arrays["ids"].astype(np.int32), arrays["distances"]
        good = ids.shape == distances.shape and ids.ndim == 2 and len(ids) == codes
        good = good and bool((ids >= 0).all() and (ids < codes).all())
        good = good and bool((distances >= 0).all())
    except Exception:  # numpy, zipfile and zlib each raise their own kinds
        good = False
    if not good:
        raise CheckpointError(
            f"'{file}' is damaged or not of {codes} codes; fetch it again, or delete "
            "it to have it built from the codebook"
        )
    return Neighbours(jnp.asarray(ids), jnp.asarray(distances, jnp.float32))


def _damaged(path: Path, error: Exception) -> CheckpointError:
    text = str(error).strip().splitlines()
    reason = (text[0] if text else type(error).__name__)[:160]
    return CheckpointError(
        f"'{path}' is damaged or truncated ({reason}); fetch it again"
    )


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of a tree of parameters, by path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _compare(path: Path, found: Any, wanted: Any) -> None:
    """Says in one message what is missing, unexpected or of another shape."""
    have = {n: tuple(x.shape) for n, x in named_leaves(found)}
    want = {n: tuple(x.shape) for n, x in named_leaves(wanted)}
    problems = []
    if missing := sorted(set(want) - set(have)):
        problems.append(f"missing {_some(missing)}")
    if extra := sorted(set(have) - set(want)):
        problems.append(f"unexpected {_some(extra)}")
    shapes = [
        f"{n} is {have[n]} instead of {want[n]}"
        for n in sorted(set(want) & set(have))
        if have[n] != want[n]
    ]
    if shapes:
        problems.append(_some(shapes))
    if problems:
        raise CheckpointError(
            f"'{path}' does not fit its configuration: {'; '.join(problems)}"
        )


def _some(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def file_digests(folder: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by path relative to it."""
    folder = Path(folder)
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(
            file.read_bytes()
        ).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def digest_of(checkpoint: Checkpoint) -> str:
    """The digest that a checkpoint was saved with, or that of its values.

    It tells which model this is, also after its parameters were cast or divided.
    """
    return checkpoint.about.get("digest") or params_digest(checkpoint.params)


def params_digest(params: Params) -> str:
    """A short digest of parameter values, to tell two checkpoints apart."""
    digest = hashlib.sha256()
    for name, x in sorted(named_leaves(params)):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]
