"""Trees of arrays on disk, by orbax, onto any devices.

The only module that imports orbax and its storage, tensorstore, and only inside the
functions that need them.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint.files import recover, replacing
from jaxspec.errors import CheckpointError

# A sharding for all parameters, or one for each by path and shape.
Placement = (
    jax.sharding.Sharding
    | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
    | None
)
# Arrays are stored in pieces of at most this size.
PIECE_BYTES = 1 << 23


def save_state(
    path: str | os.PathLike, state: Any, notes: dict[str, str] | None = None
) -> None:
    """Writes any tree of arrays (a training state) and text files, atomically."""
    with replacing(Path(path)) as fresh:
        write_tree(fresh / "state", state)
        for name, text in (notes or {}).items():
            (fresh / name).write_text(text)


def load_state(path: str | os.PathLike, like: Any) -> Any:
    """Reads what `save_state` wrote, with the structure and shapes of `like`.

    Where `like` holds arrays that lie on a mesh, so do those that are read.
    """
    where = {name: getattr(x, "sharding", None) for name, x in named_leaves(like)}
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return read_tree(
        recover(path) / "state",
        jax.eval_shape(lambda x: x, like),
        lambda name, shape: where[name] or device,
    )


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of a tree of parameters, by path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def write_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays into a new folder."""
    import orbax.checkpoint as ocp

    # In pieces, so that a device of a mesh reads little more than its part.
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE_BYTES), tree)
    with quiet(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree, save_args=pieces)
    # orbax leaves the absolute path in a note; a checkpoint should not tell it.
    for note in path.rglob("commit_success.txt"):
        note.write_text("committed\n")


def write_parts(
    path: Path,
    leaves: Iterable[tuple[str, np.ndarray | jax.Array]],
    part_bytes: int,
) -> None:
    """One tree, or several in numbered folders that make one together."""
    held: dict[str, np.ndarray | jax.Array] = {}
    count = size = 0
    for name, x in leaves:
        if held and size + x.nbytes > part_bytes:
            write_tree(path / f"part_{count}", nested(held))
            held, size, count = {}, 0, count + 1
        held[name] = x
        size += x.nbytes
    write_tree(path / f"part_{count}" if count else path, nested(held))


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dicts from leaves by path."""
    tree: dict[str, Any] = {}
    for name, x in leaves.items():
        *above, last = name.split("/")
        here = tree
        for key in above:
            here = here.setdefault(key, {})
        here[last] = x
    return tree


def read_tree(
    path: Path, like: Any, sharding: Placement = None, dtype: Any = None
) -> Any:
    """Restores onto `like`; a mismatch is one message, told before orbax reads.

    `sharding` is as in `load_checkpoint`; `dtype` casts floats.
    """
    import orbax.checkpoint as ocp

    if not path.is_dir():
        raise CheckpointError(f"'{path}' is missing; the checkpoint is incomplete")
    parts = sorted(path.glob("part_*")) or [path]
    with quiet(), ocp.StandardCheckpointer() as checkpointer:
        try:
            if jax.process_count() == 1:  # of several, each reads its part alone
                for part in parts:
                    _read_values(part)
        except Exception as error:
            raise _damaged(path, error) from None
        found = [dict(named_leaves(metadata(part))) for part in parts]
        if len(parts) == 1:  # a tree may hold lists and the like
            _compare(path, found[0], like)
            target = _target(like, found[0], sharding, dtype)
            return _restored(checkpointer, path, path, target)
        _compare(path, {k: v for part in found for k, v in part.items()}, like)
        shapes, whole = dict(named_leaves(like)), {}
        for part, names in zip(parts, found, strict=True):
            some = nested({name: shapes[name] for name in names})
            target = _target(some, names, sharding, dtype)
            whole |= dict(named_leaves(_restored(checkpointer, path, part, target)))
    leaves = [whole[name] for name, _ in named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def metadata(path: Path) -> Any:
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


def _damaged(path: Path, error: Exception) -> CheckpointError:
    text = str(error).strip().splitlines()
    reason = (text[0] if text else type(error).__name__)[:160]
    return CheckpointError(
        f"'{path}' is damaged or truncated ({reason}); fetch it again"
    )


def _compare(path: Path, found: Any, wanted: Any) -> None:
    """Says in one message what is missing, unexpected or of another shape."""
    have = {n: tuple(x.shape) for n, x in named_leaves(found)}
    want = {n: tuple(x.shape) for n, x in named_leaves(wanted)}
    problems = []
    if missing := sorted(set(want) - set(have)):
        problems.append(f"missing {some_of(missing)}")
    if extra := sorted(set(have) - set(want)):
        problems.append(f"unexpected {some_of(extra)}")
    shapes = [
        f"{n} is {have[n]} instead of {want[n]}"
        for n in sorted(set(want) & set(have))
        if have[n] != want[n]
    ]
    if shapes:
        problems.append(some_of(shapes))
    if problems:
        raise CheckpointError(
            f"'{path}' does not fit its configuration: {'; '.join(problems)}"
        )


def some_of(names: list[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
