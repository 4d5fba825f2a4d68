"""Output of a conversion: a checkpoint, as a part of a bundle."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxspec.checkpoint import (
    Checkpoint,
    read_config,
    save_leaves,
)
from jaxspec.convert.params import Progress, build_params, iter_blocks
from jaxspec.convert.plan import Conversion
from jaxspec.convert.summary import Written, remarks
from jaxspec.convert.text import FAMILIES, VOCABULARY, text_settings, vocabulary_of
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.sharding import placement
from jaxspec.speculative.verify.neighbors import neighbor_table

# Folders of a bundle by kind of checkpoint; all other kinds are drafters.
FOLDERS = {
    "prior": "prior",
    "next_scale": "prior",
    "mar": "prior",
    "tokenizer": "tokenizer",
    "multi_scale_tokenizer": "tokenizer",
    "kl_tokenizer": "tokenizer",
    "maskgit_tokenizer": "tokenizer",
    "one_d_tokenizer": "tokenizer",
    "flow_tokenizer": "tokenizer",
    "text_encoder": "text_encoder",
}
# LANTERN's `k`; the table holds one more neighbor.
NEIGHBORS = 1000


def check_source_is_kept(source: Path, bundle: Path) -> None:
    """Checks that no folder to be written is or contains the source.

    Raises:
      ConfigError: the source would be replaced.
    """
    if not source.exists():
        return
    source_folder = source.resolve() if source.is_dir() else source.resolve().parent
    for part in (*FOLDERS.values(), "drafter"):
        folder = (bundle / part).resolve()
        if folder == source_folder or folder in source_folder.parents:
            raise ConfigError(
                f"'{bundle / part}' would replace the source '{source}'; name another "
                "folder for the bundle"
            )


def check_replaceable(conversion: Conversion, bundle: Path) -> None:
    """Checks that the folder to be written is absent, empty or a checkpoint.

    Raises:
      ConfigError: it holds something else.
    """
    folder = bundle / FOLDERS.get(conversion.plan.kind, "drafter")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        read_config(folder)
    except CheckpointError:
        raise ConfigError(
            f"'{folder}' exists and is no checkpoint of jaxspec; it is not replaced. "
            "Move it, or name another folder for the bundle"
        ) from None


def write_part(
    conversion: Conversion,
    bundle: Path,
    progress: Progress,
    mesh: Mesh | None,
) -> Written:
    """Writes the checkpoint of a planned conversion, one parameter at a time.

    Args:
      conversion: planned conversion.
      bundle: folder of the bundle.
      progress: function that receives the size in bytes of each parameter.
      mesh: device mesh in whose shards parameters are stored; None for no shards.

    Raises:
      DataError: a tensor cannot be read.
      ConfigError: a parameter has the wrong shape.
      NonFiniteError: a tensor holds NaN or infinity, or overflows the dtype.
      CheckpointError: the bundle cannot be written.
    """
    plan, metadata = conversion.plan, _metadata(conversion)
    digest, codebook = hashlib.sha256(), []
    sharding_of = placement(mesh) if mesh else None

    def leaves() -> Iterator[tuple[str, np.ndarray | jax.Array]]:
        for path, x in build_params(conversion, progress):
            digest.update(path.encode())
            for block in iter_blocks(x):
                digest.update(block.reshape(-1).view(np.uint8).data)
            if path == "codebook":
                codebook.append(x.astype(np.float32))
            if sharding_of is None:
                yield path, x
            else:
                yield path, jax.device_put(x, sharding_of(path, x.shape))

    def finish() -> Checkpoint:
        metadata["digest"] = digest.hexdigest()[:16]
        table = None
        if codebook and len(codebook[0]) > 3:
            table = neighbor_table(codebook[0], min(NEIGHBORS, len(codebook[0]) - 2))
        return Checkpoint(plan.kind, plan.config, {}, metadata, table, plan.target)

    folder = bundle / FOLDERS.get(plan.kind, "drafter")
    save_leaves(folder, leaves(), finish, _tokenizer_file(conversion))
    return Written(
        folder,
        conversion.family.name,
        plan.kind,
        sum(len(entry.tensors) for entry in conversion.entries),
        conversion.parameters,
        conversion.bytes,
        metadata["digest"],
        remarks(conversion),
    )


def _metadata(conversion: Conversion) -> dict[str, Any]:
    """Returns the checkpoint's metadata, without the digest of its parameters."""
    plan, source = conversion.plan, conversion.source
    metadata: dict[str, Any] = {
        **plan.metadata,
        "source": source.name,
        "family": conversion.family.name,
    }
    if _continues_texts(conversion):
        text = text_settings(source)
        stops = {"stop_tokens": text.pop("stop_tokens")}
        metadata["text"] = text
        metadata["generation"] = {**stops, **metadata.get("generation", {})}
    if source.revision:
        metadata["revision"] = source.revision
    if source.weights:
        metadata["weights"] = source.weights
    if conversion.target_digest:
        metadata["target_digest"] = conversion.target_digest
    return metadata


def _continues_texts(conversion: Conversion) -> bool:
    """Whether the model continues texts, one token at a time."""
    return conversion.family.name in FAMILIES and conversion.plan.kind == "prior"


def _tokenizer_file(conversion: Conversion) -> dict[str, str]:
    """Text of the `tokenizer.json` of a text encoder or a model of text, by name."""
    if conversion.plan.kind != "text_encoder" and not _continues_texts(conversion):
        return {}
    text = vocabulary_of(conversion.source)
    return {} if text is None else {VOCABULARY: text}
