"""A file, a folder or a repository of the hub as a `Source`."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxspec.convert.reading.folder import (
    check_index,
    index_of,
    read_json,
    weight_files,
)
from jaxspec.convert.reading.formats import SUFFIXES, format_of
from jaxspec.convert.reading.hub import download
from jaxspec.convert.reading.safetensors import read_safetensors
from jaxspec.convert.reading.scaled import with_scales
from jaxspec.convert.reading.sets import PLAIN, Sets, chosen, weight_sets
from jaxspec.convert.reading.stored import Source
from jaxspec.convert.reading.torch_zip import read_torch
from jaxspec.convert.reading.wrappers import unwrapped
from jaxspec.errors import DataError


def open_source(
    place: str | os.PathLike,
    *,
    allow_objects: bool = False,
    weights: str | None = None,
) -> Source:
    """Finds the tensors of a model; none is read yet.

    Args:
      place: a file (safetensors, or a zip of PyTorch's), a folder with one model in
        one or several such files, or `OWNER/NAME[@REVISION][:FILE]` on the hub.
      allow_objects: see `read_torch`.
      weights: which set of weights in the files is meant; see `chosen`.

    Raises:
      DataError: there is nothing there, or it cannot be used; says why.
    """
    path, revision = Path(place), None
    if not os.path.lexists(path):
        path, revision = download(str(place))
    if not path.is_file() and not path.is_dir():
        raise DataError(f"'{place}' is neither a file nor a folder")
    files = [path] if path.is_file() else weight_files(path)
    sets: Sets = defaultdict(dict)
    left_out: list[str] = []
    names: dict[str, list[str]] = {}
    for file in files:
        found, other = _read(file, allow_objects)
        left_out += other
        names[file.name] = [
            n for some in found.values() for n, x in some.items() if not x.alias
        ]
        for key, tensors in found.items():
            for name, tensor in tensors.items():
                if name in sets[key]:
                    raise DataError(
                        f"the tensor {name} is in '{sets[key][name].file.name}' and in "
                        f"'{file.name}'; a model has each once"
                    )
                sets[key][name] = tensor
    index = index_of(path)
    if index is not None:
        check_index(index, names)
    if not sets:
        raise DataError(f"'{place}' holds no tensors")
    folder = path if path.is_dir() else path.parent
    source = Source(
        str(place) if revision else path.name,
        {},
        _config(folder),
        folder,
        revision,
        tuple(dict.fromkeys(left_out)),
        dict(sets),
    )
    return with_weights(source, PLAIN, weights)


def with_weights(source: Source, order: Sequence[str], wanted: str | None) -> Source:
    """The source with one of its sets as its tensors.

    Names are without wrappers' prefixes, and float8 weights with their scales.

    Args:
      source: with all sets.
      order: see `chosen`.
      wanted: likewise.

    Raises:
      DataError: there is no such set, several could be meant, or it cannot be used.
    """
    name = chosen(source.sets, source.name, order, wanted)
    try:
        tensors, prefixes = unwrapped(source.sets[name])
    except ValueError as error:
        raise DataError(f"'{source.name}': {error}; a model has each once") from None
    return replace(
        source,
        tensors=with_scales(tensors, source.config),
        weights=name,
        prefixes=prefixes,
    )


def _read(file: Path, allow_objects: bool) -> tuple[Sets, list[str]]:
    """The sets of weights of a file, and the names of what is in none."""
    try:
        if (format_of(file) or SUFFIXES.get(file.suffix)) == "safetensors":
            return weight_sets(read_safetensors(file), file)
        value, refused = read_torch(file, allow_objects=allow_objects)
    except OSError as error:
        raise DataError(f"cannot read '{file}': {error.strerror}") from None
    found, left_out = weight_sets(value, file)
    return found, [*refused, *left_out]


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return read_json(file) if file.is_file() else {}
