"""Trees of arrays on disk, and back onto any devices."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint.arrays import read_array, stored_arrays, write_arrays
from jaxspec.checkpoint.files import recover, replacing
from jaxspec.errors import CheckpointError

# A sharding for all parameters, or one for each by path and shape.
Placement = (
    jax.sharding.Sharding
    | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
    | None
)


def save_state(
    path: str | os.PathLike, state: Any, notes: dict[str, str] | None = None
) -> None:
    """Writes any tree of arrays (a training state) and text files, atomically."""
    with replacing(Path(path)) as fresh:
        write_tree(fresh / "state", state)
        for name, text in (notes or {}).items():
            (fresh / name).write_text(text, encoding="utf-8")


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


def write_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays into a new folder.

    Raises:
      OSError: the folder cannot be written, or its disk is full.
    """
    write_arrays(path, jax.tree_util.tree_leaves_with_path(tree))


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
    """Reads what `write_tree` or `write_parts` wrote, as a tree like `like`.

    `sharding` is as in `load_checkpoint`; `dtype` casts floats.

    Raises:
      CheckpointError: it is missing, damaged, or does not fit; names and shapes are
        compared before a value is read.
    """
    stored: dict[str, Any] = {}
    for part in parts_of(path):
        stored |= stored_in(part)
    _compare(path, stored, like)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array:
        kind = stored[name].dtype.numpy_dtype
        if dtype is not None and jnp.issubdtype(kind, jnp.floating):
            kind = jnp.dtype(dtype)
        where = sharding(name, shape) if callable(sharding) else sharding or device
        try:
            return read_array(stored[name], where, kind)
        except OSError as error:
            raise _damaged(path, error) from None

    leaves = [leaf(name, x.shape) for name, x in named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def parts_of(path: Path) -> list[Path]:
    """The folders that make a tree together."""
    if not path.is_dir():
        raise CheckpointError(f"'{path}' is missing; the checkpoint is incomplete")
    return sorted(path.glob("part_*")) or [path]


def stored_in(part: Path) -> dict[str, Any]:
    """Handles of the arrays of one folder, with `shape` and `dtype`, by path.

    Raises:
      CheckpointError: it is damaged.
    """
    try:
        return stored_arrays(part)
    except OSError as error:
        raise _damaged(part, error) from None


def _damaged(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"'{path}' is damaged or truncated ({error.strerror}); fetch it again"
    )


def _compare(path: Path, found: Mapping[str, Any], wanted: Any) -> None:
    """Says in one message what is missing, unexpected or of another shape."""
    have = {n: tuple(x.shape) for n, x in found.items()}
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
