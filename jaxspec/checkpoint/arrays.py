"""Array storage in orbax's format, written and read with tensorstore.

orbax can restore these folders, and folders saved by orbax can be read here. We do not
use orbax's writer because its background threads outlive an error or an interrupt and
then log to stderr; here every call finishes its work before it returns. This is the
only module that imports tensorstore, inside the functions that need it.
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
# Largest chunk of a stored array.
CHUNK_BYTES = 1 << 23
# Bytes that are buffered in memory before they are committed to the folder.
COMMIT_BYTES = 1 << 26
# Longest wait for an aborted commit after an interrupt.
ABORT_SECONDS = 3.0
# orbax's `key_type` of a sequence index and of a dict key.
_INDEX, _NAME = 1, 2


def write_arrays(folder: Path, leaves: Iterable[tuple[Any, Any]]) -> None:
    """Writes arrays into a new folder.

    Args:
      folder: folder to create.
      leaves: pairs of JAX key path and array. A sharded array is stored in at least one
        chunk per shard, so that a device can read its shard alone.

    Raises:
      OSError: the folder cannot be written, or its disk is full.
    """
    import tensorstore as ts

    folder.mkdir(parents=True)
    context, tree_metadata = ts.Context(), {}
    transaction, pending_bytes = ts.Transaction(), 0
    try:
        for path, x in leaves:
            keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
            spec = {
                **_spec(folder, keys),
                "metadata": {
                    "shape": list(np.shape(x)),
                    "chunks": _chunk_shape(x),
                    "compressor": {"id": "zstd", "level": 1},
                },
                "dtype": str(x.dtype),
                "store_data_equal_to_fill_value": True,
            }
            store = ts.open(
                spec, create=True, context=context, transaction=transaction
            ).result()
            store.write(np.asarray(x)).result()
            tree_metadata[str(tuple(keys))] = _leaf_metadata(path, keys, x)
            pending_bytes += x.nbytes
            if pending_bytes >= COMMIT_BYTES:
                _commit(transaction)
                transaction, pending_bytes = ts.Transaction(), 0
        _commit(transaction)
    except (ValueError, RuntimeError) as error:  # what tensorstore raises
        raise _system_error(error) from None
    record = {
        "tree_metadata": tree_metadata,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    (folder / METADATA).write_text(json.dumps(record), encoding="utf-8")


def _commit(transaction: Any) -> None:
    """Commits a transaction; an interrupt aborts it instead of waiting for it."""
    future = transaction.commit_async()
    try:
        future.result()
    finally:
        if not future.done():
            transaction.abort()
            with contextlib.suppress(TimeoutError):
                future.exception(timeout=ABORT_SECONDS)


def open_arrays(folder: Path) -> dict[str, Any]:
    """Opens the arrays of a folder.

    Returns:
      tensorstore handles, with `shape` and `dtype`, by path such as
      "layers_0/kernel". `read_array` reads their values.

    Raises:
      OSError: the folder is damaged.
    """
    import tensorstore as ts

    context, futures = ts.Context(), {}
    try:
        record = json.loads((folder / METADATA).read_bytes())
        for entry in record["tree_metadata"].values():
            if entry["value_metadata"]["skip_deserialize"]:
                continue  # an empty subtree
            keys = [str(step["key"]) for step in entry["key_metadata"]]
            # A writer that skips chunks of zeros makes a missing chunk valid.
            zeros_stored = bool(
                record.get("store_array_data_equal_to_fill_value", False)
            )
            spec = _spec(folder, keys) | {"fill_missing_data_reads": not zeros_stored}
            futures["/".join(keys)] = ts.open(
                spec, open=True, read=True, write=False, context=context
            )
        return {name: future.result() for name, future in futures.items()}
    except (AttributeError, KeyError, TypeError):
        raise OSError(None, f"{METADATA} has an unknown structure") from None
    except (ValueError, RuntimeError) as error:
        raise _system_error(error) from None


def read_array(
    store: Any, sharding: jax.sharding.Sharding, dtype: np.dtype
) -> jax.Array:
    """Reads an array onto devices; each distinct shard is read once.

    Args:
      store: handle from `open_arrays`.
      sharding: sharding of the result.
      dtype: dtype of the result; values are cast while they are read.

    Raises:
      OSError: a chunk is missing or damaged.
    """
    import tensorstore as ts

    shape = store.shape
    if dtype != store.dtype.numpy_dtype:
        store = ts.cast(store, ts.dtype(dtype))
    shards: dict[str, np.ndarray] = {}  # replicas share one read

    def read_shard(index: Any) -> np.ndarray:
        if str(index) not in shards:
            try:
                shards[str(index)] = store[index].read().result()
            except (ValueError, RuntimeError) as error:
                raise _system_error(error) from None
        return shards[str(index)]

    return jax.make_array_from_callback(shape, sharding, read_shard)


def _spec(folder: Path, keys: list[str]) -> dict[str, Any]:
    """tensorstore spec of one array: zarr in an OCDBT store, as orbax writes it."""
    # tensorstore refuses paths with "..".
    base = {"driver": "file", "path": f"{folder.resolve()}/"}
    store = {"driver": "ocdbt", "base": base, "path": f"{'.'.join(keys)}/"}
    return {"driver": "zarr", "kvstore": store}


def _chunk_shape(x: Any) -> list[int]:
    """The shape of one shard, halved along its longest axis down to `CHUNK_BYTES`."""
    shape = np.shape(x)
    if isinstance(x, jax.Array):
        shape = x.sharding.shard_shape(x.shape)
    shape = [max(n, 1) for n in shape]
    while math.prod(shape) * x.dtype.itemsize > CHUNK_BYTES and max(shape) > 1:
        longest = shape.index(max(shape))
        shape[longest] = -(-shape[longest] // 2)
    return shape


def _leaf_metadata(path: Any, keys: list[str], x: Any) -> dict[str, Any]:
    """orbax's entry of one leaf in `_METADATA`."""
    key_types = [
        _INDEX if isinstance(key, jax.tree_util.SequenceKey) else _NAME for key in path
    ]
    steps = [{"key": k, "key_type": t} for k, t in zip(keys, key_types, strict=True)]
    value = {
        "value_type": "jax.Array",
        "skip_deserialize": False,
        "write_shape": list(np.shape(x)),
    }
    return {"key_metadata": steps, "value_metadata": value}


def _system_error(error: Exception) -> OSError:
    """Converts an error of tensorstore to the `OSError` whose number its text holds."""
    text = str(error)
    if match := re.search(r"os[ _]error\D*(\d+)", text, re.IGNORECASE):
        number = int(match[1])
        return OSError(number, os.strerror(number))
    return OSError(None, text.splitlines()[0][:160] if text else type(error).__name__)
