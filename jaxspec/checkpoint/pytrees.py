"""Pytrees of arrays on disk, and their restoration onto any devices."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint.arrays import open_arrays, read_array, write_arrays
from jaxspec.checkpoint.folders import recover, replace_folder, write_notes
from jaxspec.errors import CheckpointError

# One sharding for all parameters, or a function from path and shape to a sharding.
Placement = (
    jax.sharding.Sharding
    | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
    | None
)


def save_state(
    path: str | os.PathLike, state: Any, notes: dict[str, str] | None = None
) -> None:
    """Writes any pytree of arrays, such as a training state, atomically.

    Args:
      path: folder to write or replace.
      state: pytree of arrays.
      notes: text files to write beside it, by name.

    Raises:
      CheckpointError: the folder cannot be written.
    """
    with replace_folder(Path(path)) as fresh:
        write_pytree(fresh / "state", state)
        write_notes(fresh, notes)


def load_state(path: str | os.PathLike, like: Any) -> Any:
    """Reads a pytree written by `save_state`.

    Args:
      path: folder written by `save_state`.
      like: pytree with the structure, shapes and shardings of the result. Leaves
        without a sharding are put on the first local device.

    Raises:
      CheckpointError: the folder is missing, damaged, or does not fit `like`.
    """
    shardings = {name: getattr(x, "sharding", None) for name, x in named_leaves(like)}
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return read_pytree(
        recover(path) / "state",
        jax.eval_shape(lambda x: x, like),
        lambda name, shape: shardings[name] or device,
    )


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a pytree with their paths, such as "layers_0/kernel"."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def write_pytree(path: Path, tree: Any) -> None:
    """Writes a pytree of arrays into a new folder.

    Raises:
      OSError: the folder cannot be written, or its disk is full.
    """
    write_arrays(path, jax.tree_util.tree_leaves_with_path(tree))


def write_parts(
    path: Path,
    leaves: Iterable[tuple[str, np.ndarray | jax.Array]],
    part_bytes: int,
) -> None:
    """Writes named leaves as one pytree, or as several in numbered part folders.

    Args:
      path: folder to create.
      leaves: pairs of path and array, consumed one at a time.
      part_bytes: size at which a new part begins.

    Raises:
      OSError: the folder cannot be written, or its disk is full.
    """
    part: dict[str, np.ndarray | jax.Array] = {}
    count = size = 0
    for name, x in leaves:
        if part and size + x.nbytes > part_bytes:
            write_pytree(path / f"part_{count}", unflatten(part))
            part, size, count = {}, 0, count + 1
        part[name] = x
        size += x.nbytes
    write_pytree(path / f"part_{count}" if count else path, unflatten(part))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves keyed by paths such as "layers_0/kernel"."""
    tree: dict[str, Any] = {}
    for name, x in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = x
    return tree


def read_pytree(
    path: Path, like: Any, sharding: Placement = None, dtype: Any = None
) -> Any:
    """Reads a pytree written by `write_pytree` or `write_parts`.

    Args:
      path: folder that was written.
      like: pytree with the structure and shapes of the result. Names and shapes are
        compared before any value is read.
      sharding: sharding of all leaves, or a function from path and shape to one; None
        puts everything on the first local device.
      dtype: dtype of floating-point leaves; None keeps the stored one.

    Raises:
      CheckpointError: the folder is missing, damaged, or does not fit `like`.
    """
    stored: dict[str, Any] = {}
    for part in part_folders(path):
        stored |= open_part(part)
    _check_fits(path, stored, like)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def read_leaf(name: str, shape: tuple[int, ...]) -> jax.Array:
        leaf_dtype = stored[name].dtype.numpy_dtype
        if dtype is not None and jnp.issubdtype(leaf_dtype, jnp.floating):
            leaf_dtype = jnp.dtype(dtype)
        leaf_sharding = (
            sharding(name, shape) if callable(sharding) else sharding or device
        )
        try:
            return read_array(stored[name], leaf_sharding, leaf_dtype)
        except OSError as error:
            raise _damaged(path, error) from None

    leaves = [read_leaf(name, x.shape) for name, x in named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def part_folders(path: Path) -> list[Path]:
    """The folders whose arrays together form one pytree.

    Raises:
      CheckpointError: `path` is missing.
    """
    if not path.is_dir():
        raise CheckpointError(f"'{path}' is missing; the checkpoint is incomplete")
    return sorted(path.glob("part_*")) or [path]


def open_part(part: Path) -> dict[str, Any]:
    """Opens the arrays of one part folder; see `open_arrays`.

    Raises:
      CheckpointError: the folder is damaged.
    """
    try:
        return open_arrays(part)
    except OSError as error:
        raise _damaged(part, error) from None


def _damaged(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"'{path}' is damaged or truncated ({error.strerror}); fetch it again"
    )


def _check_fits(path: Path, stored: Mapping[str, Any], like: Any) -> None:
    """Raises one error that lists all missing, unexpected and misshapen leaves."""
    stored_shapes = {name: tuple(x.shape) for name, x in stored.items()}
    expected_shapes = {name: tuple(x.shape) for name, x in named_leaves(like)}
    problems = []
    if missing := sorted(set(expected_shapes) - set(stored_shapes)):
        problems.append(f"missing {abbreviated(missing)}")
    if unexpected := sorted(set(stored_shapes) - set(expected_shapes)):
        problems.append(f"unexpected {abbreviated(unexpected)}")
    mismatches = [
        f"{name} is {stored_shapes[name]} instead of {expected_shapes[name]}"
        for name in sorted(set(expected_shapes) & set(stored_shapes))
        if stored_shapes[name] != expected_shapes[name]
    ]
    if mismatches:
        problems.append(abbreviated(mismatches))
    if problems:
        raise CheckpointError(
            f"'{path}' does not fit its configuration: {'; '.join(problems)}"
        )


def abbreviated(names: list[str], limit: int = 4) -> str:
    """The first few names, comma-separated, and the number of the others."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
