"""Checkpoints of ours as safetensors, with the names that a family is released in."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.checkpoint import load_checkpoint, named_leaves
from jaxspec.convert.families import FAMILIES
from jaxspec.convert.family import Outgoing
from jaxspec.convert.mapping import Rule
from jaxspec.convert.reading.safetensors import write_safetensors
from jaxspec.convert.transforms import TRANSFORMS
from jaxspec.errors import ConfigError, DataError
from jaxspec.writing import write_file

Progress = Callable[[int], object]
EXPORTS = tuple(name for name, family in FAMILIES.items() if family.export)


def export(
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    family: str,
    progress: Callable[[int], Progress] = lambda total: lambda count: None,
) -> Path:
    """Writes `model.safetensors` and `config.json`.

    Every tensor keeps its dtype and its bits; converting the folder back gives the
    same checkpoint.

    Args:
      checkpoint: a part of a bundle (`.../prior`, `.../drafter`).
      folder: made if it is not there.
      family: one of `EXPORTS`.
      progress: called with all bytes; gives a function of bytes done.

    Returns:
      The file.

    Raises:
      ConfigError: the family is not written, cannot hold this model, or the folder
        holds a checkpoint of ours.
      CheckpointError: the checkpoint cannot be read.
      DataError: the folder cannot be written.
    """
    if family not in EXPORTS:
        raise ConfigError(f"family {family!r} is not written; {', '.join(EXPORTS)} are")
    folder = Path(folder)
    if (folder / "params").exists():
        raise ConfigError(
            f"'{folder}' holds a checkpoint of jaxspec; export into another folder"
        )
    found = load_checkpoint(checkpoint)
    write = FAMILIES[family].export
    assert write is not None
    out = write(found)
    leaves = {k: v for k, v in named_leaves(found.params) if k not in out.left_out}
    parts = {
        name: (path, rule, span)
        for path in leaves
        for name, rule, span in _pieces(path, leaves, out)
    }

    def part(name: str, leaf: np.ndarray) -> np.ndarray:
        """A tensor of theirs, out of (something shaped like) a parameter of ours."""
        _, rule, span = parts[name]
        x = leaf[(slice(None),) * (rule.axis % leaf.ndim) + (span,)]
        return TRANSFORMS[rule.transform].back(x, out.heads)

    def read(name: str) -> np.ndarray:
        if name in out.computed:
            return out.computed[name]
        x = part(name, np.asarray(leaves[parts[name][0]]))
        advance(x.nbytes)
        return x

    table = []
    for name, (path, *_) in parts.items():
        shape = part(name, np.broadcast_to(np.int8(0), leaves[path].shape)).shape
        table.append((name, shape, leaves[path].dtype))
    table += [(name, x.shape, x.dtype) for name, x in out.computed.items()]
    advance = progress(sum(x.nbytes for x in leaves.values()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "model.safetensors"
        write_safetensors(file, table, read)
        text = json.dumps(out.config, indent=2) + "\n"
        write_file(folder / "config.json", text.encode("utf-8"))
    except OSError as error:
        raise DataError(f"cannot write '{folder}': {error.strerror}") from None
    return file


def _pieces(
    path: str, leaves: Mapping[str, Any], out: Outgoing
) -> list[tuple[str, Rule, slice]]:
    """Names, rules and spans of the tensors that a parameter is taken apart into."""
    found = [(rule, name) for rule in out.rules if (name := rule.name(path))]
    found.sort(key=lambda pair: pair[0].part)
    if not found:
        raise ConfigError(f"the family has no place for the parameter {path}")
    if len(found) == 1:
        return [(found[0][1], found[0][0], slice(None))]
    total = leaves[path].shape[found[0][0].axis]
    sizes = [total // len(found)] * len(found)
    if "/qkv/" in path:  # several queries a key
        sizes = [total - 2, 1, 1]
    ends = np.cumsum(sizes).tolist()
    spans = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [(name, rule, s) for (rule, name), s in zip(found, spans, strict=True)]
