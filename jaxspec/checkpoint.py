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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import TokenizerConfig, TransformerConfig, from_dict, to_dict
from jaxspec.drafters.kinds import DRAFTERS
from jaxspec.errors import CheckpointError, ConfigError, NonFiniteError
from jaxspec.models.classifier import Classifier, ClassifierConfig
from jaxspec.models.tokenizer import Tokenizer
from jaxspec.models.transformer import Transformer
from jaxspec.spec.neighbours import Neighbours
from jaxspec.typing import Params

FORMAT = 1
NEIGHBOURS = "neighbours.npz"
KINDS = {
    "tokenizer": TokenizerConfig,
    "prior": TransformerConfig,
    "classifier": ClassifierConfig,
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
    from jaxspec import __version__

    path = Path(path)
    record = {
        "format": FORMAT,
        "jaxspec": __version__,
        "kind": checkpoint.kind,
        "config": to_dict(checkpoint.config),
        "about": checkpoint.about,
    }
    with _replacing(path) as fresh:
        _write_tree(fresh / "params", checkpoint.params)
        (fresh / "config.json").write_text(json.dumps(record, indent=2) + "\n")
        if checkpoint.neighbours is not None:
            _write_neighbours(fresh / NEIGHBOURS, checkpoint.neighbours)
        for name, text in (notes or {}).items():
            (fresh / name).write_text(text)


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


def load(path: str | os.PathLike, kind: str | None = None) -> Checkpoint:
    """Reads a checkpoint onto the default device, in the dtypes it was saved in.

    Args:
      path: a folder written by `save`.
      kind: refuse any other kind.

    Raises:
      CheckpointError: missing, damaged, of another kind, or not of the shapes its
        configuration asks for.
      NonFiniteError: a parameter holds NaN or infinity.
    """
    head = read_config(path)
    if kind is not None and head.kind != kind:
        raise CheckpointError(f"'{path}' holds a {head.kind}, not a {kind}")
    params = _read_tree(Path(path) / "params", abstract_params(head.kind, head.config))
    for name, x in _named_leaves(params):
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


def abstract_params(kind: str, config: Any) -> Params:
    """Shapes and dtypes of a model's parameters."""
    init = {
        "tokenizer": lambda key: Tokenizer(config).init(key),
        "prior": lambda key: Transformer(config).init(key),
        "classifier": lambda key: Classifier(config).init(key),
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
    """Reads what `save_state` wrote, with the structure and shapes of `like`."""
    return _read_tree(recover(path) / "state", jax.eval_shape(lambda x: x, like))


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

    with _quiet(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)
    # orbax leaves the absolute path in a note; a checkpoint should not tell it.
    for note in path.rglob("commit_success.txt"):
        note.write_text("committed\n")


def _read_tree(path: Path, like: Any) -> Any:
    """Restores onto `like`; a mismatch is one message, told before orbax reads."""
    import orbax.checkpoint as ocp

    if not path.is_dir():
        raise CheckpointError(f"'{path}' is missing; the checkpoint is incomplete")
    with _quiet(), ocp.StandardCheckpointer() as checkpointer:
        try:
            _read_values(path)
        except Exception as error:
            raise _damaged(path, error) from None
        try:
            found = checkpointer.metadata(path.absolute()).item_metadata.tree
        except Exception:
            raise CheckpointError(
                f"'{path}' is damaged (its metadata cannot be read); fetch it again"
            ) from None
        _compare(path, found, like)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        dtypes = {name: x.dtype for name, x in _named_leaves(found)}
        leaves = [
            jax.ShapeDtypeStruct(x.shape, dtypes[name], sharding=device)
            for name, x in _named_leaves(like)
        ]
        target = jax.tree.unflatten(jax.tree.structure(like), leaves)
        try:
            return checkpointer.restore(path.absolute(), target)
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


def _named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _compare(path: Path, found: Any, wanted: Any) -> None:
    """Says in one message what is missing, unexpected or of another shape."""
    have = {n: tuple(x.shape) for n, x in _named_leaves(found)}
    want = {n: tuple(x.shape) for n, x in _named_leaves(wanted)}
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


def params_digest(params: Params) -> str:
    """A short digest of parameter values, to tell two checkpoints apart."""
    digest = hashlib.sha256()
    for name, x in sorted(_named_leaves(params)):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]
