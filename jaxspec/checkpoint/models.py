"""A model on disk: `config.json` beside a `params/` folder.

A tokenizer may bring `neighbors.npz`, the nearest codes of its codebook.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint.files import recover, replacing
from jaxspec.checkpoint.trees import (
    Placement,
    named_leaves,
    nested,
    parts_of,
    read_tree,
    some_of,
    stored_in,
    write_parts,
    write_tree,
)
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
from jaxspec.spec.neighbors import Neighbors
from jaxspec.typing import Params

FORMAT = 3
NEIGHBORS = "neighbors.npz"
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
      about: everything else worth keeping: data, license, command, device, steps,
        metrics, class names.
      neighbors: of a tokenizer's codes, if it was saved with them.
    """

    kind: str
    config: Any
    params: Params
    metadata: dict[str, Any] = field(default_factory=dict)
    neighbors: Neighbors | None = None


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
    metadata = {**checkpoint.metadata, "digest": params_digest(checkpoint.params)}
    with replacing(Path(path)) as fresh:
        write_tree(fresh / "params", checkpoint.params)
        _write_notes(fresh, replace(checkpoint, metadata=metadata), notes)


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
        "metadata": checkpoint.metadata,
    }
    (folder / "config.json").write_text(
        json.dumps(record, indent=2) + "\n", encoding="utf-8"
    )
    if checkpoint.neighbors is not None:
        _write_neighbors(folder / NEIGHBORS, checkpoint.neighbors)
    for name, text in (notes or {}).items():
        (folder / name).write_text(text, encoding="utf-8")


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
    with replacing(path) as fresh:
        write_parts(fresh / "params", leaves, part_bytes)
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
        record = json.loads(file.read_bytes())
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"'{path}' has format {record['format']}; this jaxspec reads format "
                f"{FORMAT}: install a matching version"
            )
        kind = record["kind"]
        config = from_dict(KINDS[kind], record["config"])
        return Checkpoint(kind, config, {}, dict(record.get("metadata", {})))
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
    params = read_tree(Path(path) / "params", like, sharding, dtype)
    for name, x in named_leaves(params):
        if not bool(jnp.isfinite(x).all()):
            raise NonFiniteError(
                f"'{path}': parameter {name} holds NaN or infinity; "
                "the checkpoint is unusable, fetch or train it again"
            )
    neighbors = None
    if head.kind == "tokenizer" and (Path(path) / NEIGHBORS).is_file():
        codes = head.config.codebook_size
        neighbors = _read_neighbors(Path(path) / NEIGHBORS, codes)
    return Checkpoint(head.kind, head.config, params, head.metadata, neighbors)


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
    for part in parts_of(folder):
        here = stored_in(part)
        if names & set(here):
            some = nested({name: like[name] for name in here if name in like})
            leaves = named_leaves(read_tree(part, some))
            found |= {name: x for name, x in leaves if name in names}
    if missing := names - set(found):
        raise CheckpointError(f"'{path}' has no {some_of(sorted(missing))}")
    return nested(found)


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


def _write_neighbors(file: Path, table: Neighbors) -> None:
    small = np.uint16 if table.ids.shape[0] <= 1 << 16 else np.int32
    ids, distances = np.asarray(table.ids, small), np.asarray(table.distances)
    np.savez_compressed(file, ids=ids, distances=distances)


def _read_neighbors(file: Path, codes: int) -> Neighbors:
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
    return Neighbors(jnp.asarray(ids), jnp.asarray(distances, jnp.float32))


def digest_of(checkpoint: Checkpoint) -> str:
    """The digest that a checkpoint was saved with, or that of its values.

    It tells which model this is, also after its parameters were cast or divided.
    """
    return checkpoint.metadata.get("digest") or params_digest(checkpoint.params)


def params_digest(params: Params) -> str:
    """A short digest of parameter values, to tell two checkpoints apart."""
    digest = hashlib.sha256()
    for name, x in sorted(named_leaves(params)):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]
