"""Arrays in a folder, by tensorstore, in the layout of orbax.

orbax reads what is written here, and what orbax wrote is read. Its own writer starts
threads that outlive an error or an interrupt and complain on stderr; here each call
ends before the next begins. The only module that imports tensorstore, and only inside
the functions that need it.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

METADATA = "_METADATA"
# Arrays are stored in pieces of at most this size.
PIECE_BYTES = 1 << 23
# About so much is held in memory before it is committed to the folder.
COMMIT_BYTES = 1 << 26
# After an interrupt, what is under way may take so long to end.
ABORT_SECONDS = 3.0
# orbax's numbers for a step into a tree: an index, or a name.
_INDEX, _NAME = 1, 2


def write_arrays(folder: Path, leaves: Iterable[tuple[Any, Any]]) -> None:
    """Writes arrays into a new folder.

    Args:
      folder: made here.
      leaves: arrays by jax key path; one that is divided among devices is stored in as
        many pieces, so that each can read its own.

    Raises:
      OSError: the folder cannot be written, or its disk is full.
    """
    import tensorstore as ts

    folder.mkdir(parents=True)
    context, described = ts.Context(), {}
    transaction, held = ts.Transaction(), 0
    try:
        for path, x in leaves:
            keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
            spec = {
                **_spec(folder, keys),
                "metadata": {
                    "shape": list(np.shape(x)),
                    "chunks": _piece_shape(x),
                    "compressor": {"id": "zstd", "level": 1},
                },
                "dtype": str(x.dtype),
                "store_data_equal_to_fill_value": True,
            }
            store = ts.open(
                spec, create=True, context=context, transaction=transaction
            ).result()
            store.write(np.asarray(x)).result()
            described[str(tuple(keys))] = _description(path, keys, x)
            held += x.nbytes
            if held >= COMMIT_BYTES:
                _commit(transaction)
                transaction, held = ts.Transaction(), 0
        _commit(transaction)
    except (ValueError, RuntimeError) as error:  # all that tensorstore raises
        raise _system_error(error) from None
    record = {
        "tree_metadata": described,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    (folder / METADATA).write_text(json.dumps(record), encoding="utf-8")


def _commit(transaction: Any) -> None:
    """Writes what a transaction holds, and after an interrupt no more of it."""
    done = transaction.commit_async()
    try:
        done.result()
    finally:
        if not done.done():
            transaction.abort()
            with contextlib.suppress(TimeoutError):
                done.exception(timeout=ABORT_SECONDS)


def stored_arrays(folder: Path) -> dict[str, Any]:
    """Opens the arrays of a folder.

    Returns:
      Array handles, which have `shape` and `dtype`, by path such as "layers_0/kernel";
      `read_array` reads one.

    Raises:
      OSError: the folder is damaged.
    """
    import tensorstore as ts

    context, opening = ts.Context(), {}
    try:
        record = json.loads((folder / METADATA).read_bytes())
        for entry in record["tree_metadata"].values():
            if entry["value_metadata"]["skip_deserialize"]:
                continue  # an empty branch of the tree
            keys = [str(step["key"]) for step in entry["key_metadata"]]
            # Where pieces of zeros were left out, one that is missing is zeros.
            whole = bool(record.get("store_array_data_equal_to_fill_value", False))
            spec = _spec(folder, keys) | {"fill_missing_data_reads": not whole}
            opening["/".join(keys)] = ts.open(
                spec, open=True, read=True, write=False, context=context
            )
        return {name: future.result() for name, future in opening.items()}
    except (AttributeError, KeyError, TypeError):
        raise OSError(None, f"{METADATA} has another form") from None
    except (ValueError, RuntimeError) as error:
        raise _system_error(error) from None


def read_array(
    store: Any, sharding: jax.sharding.Sharding, dtype: np.dtype
) -> jax.Array:
    """Reads an array onto devices, on each no more than its part.

    Raises:
      OSError: a piece is missing or damaged.
    """
    import tensorstore as ts

    shape = store.shape
    if dtype != store.dtype.numpy_dtype:
        store = ts.cast(store, ts.dtype(dtype))
    parts: dict[str, np.ndarray] = {}  # devices that hold the same read it once

    def part(index: Any) -> np.ndarray:
        if str(index) not in parts:
            try:
                parts[str(index)] = store[index].read().result()
            except (ValueError, RuntimeError) as error:
                raise _system_error(error) from None
        return parts[str(index)]

    return jax.make_array_from_callback(shape, sharding, part)


def _spec(folder: Path, keys: list[str]) -> dict[str, Any]:
    base = {"driver": "file", "path": f"{folder.absolute()}/"}
    store = {"driver": "ocdbt", "base": base, "path": f"{'.'.join(keys)}/"}
    return {"driver": "zarr", "kvstore": store}


def _piece_shape(x: Any) -> list[int]:
    """A device's part of an array, halved until it is small enough."""
    shape = np.shape(x)
    if isinstance(x, jax.Array):
        shape = x.sharding.shard_shape(x.shape)
    shape = [max(n, 1) for n in shape]
    while math.prod(shape) * x.dtype.itemsize > PIECE_BYTES and max(shape) > 1:
        longest = shape.index(max(shape))
        shape[longest] = -(-shape[longest] // 2)
    return shape


def _description(path: Any, keys: list[str], x: Any) -> dict[str, Any]:
    kinds = [
        _INDEX if isinstance(key, jax.tree_util.SequenceKey) else _NAME for key in path
    ]
    steps = [{"key": k, "key_type": n} for k, n in zip(keys, kinds, strict=True)]
    value = {
        "value_type": "jax.Array",
        "skip_deserialize": False,
        "write_shape": list(np.shape(x)),
    }
    return {"key_metadata": steps, "value_metadata": value}


def _system_error(error: Exception) -> OSError:
    """The system's error that tensorstore reports in words."""
    text = str(error)
    if found := re.search(r"os[ _]error\D*(\d+)", text, re.IGNORECASE):
        number = int(found[1])
        return OSError(number, os.strerror(number))
    return OSError(None, text.splitlines()[0][:160] if text else type(error).__name__)
