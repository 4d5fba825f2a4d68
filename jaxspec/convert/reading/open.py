"""Opening of files, folders and Hugging Face repositories as a `Source`."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxspec.convert.reading.folder import (
    check_index,
    index_of,
    read_json,
    weight_files,
)
from jaxspec.convert.reading.formats import SUFFIXES, format_of
from jaxspec.convert.reading.gguf.model import read_gguf
from jaxspec.convert.reading.gguf.vocabulary import text_settings, tokenizer_json
from jaxspec.convert.reading.hub import download
from jaxspec.convert.reading.safetensors import header_settings, read_safetensors
from jaxspec.convert.reading.scaled import apply_scales
from jaxspec.convert.reading.sets import PLAIN, Sets, select_weights, weight_sets
from jaxspec.convert.reading.source import Source
from jaxspec.convert.reading.torch_zip import read_torch
from jaxspec.convert.reading.wrappers import strip_wrappers
from jaxspec.errors import DataError


def open_source(
    location: str | os.PathLike,
    *,
    allow_objects: bool = False,
    weights: str | None = None,
) -> Source:
    """Lists the tensors of a model without reading their values.

    Args:
      location: file (safetensors, GGUF, or PyTorch's zip format), folder with one model
        in one or several such files, or `OWNER/NAME[@REVISION][:FILE]` on the Hugging
        Face hub.
      allow_objects: whether to skip Python objects in PyTorch files instead of
        refusing the file; see `read_torch`.
      weights: name of the set of weights; by default the first of `PLAIN`.

    Raises:
      DataError: the location does not exist or cannot be read.
    """
    path, revision = Path(location), None
    if not os.path.lexists(path):
        path, revision = download(str(location))
    if not path.is_file() and not path.is_dir():
        raise DataError(f"'{location}' is neither a file nor a folder")
    sets, left_out, metadata = _read_files(path, allow_objects)
    if not sets:
        raise DataError(f"'{location}' holds no tensors")
    folder = path if path.is_dir() else path.parent
    source = Source(
        str(location) if revision else path.name,
        {},
        metadata.get("config") or _config(folder) or metadata.get("header", {}),
        folder,
        revision,
        tuple(dict.fromkeys(left_out)),
        sets,
        vocabulary=metadata.get("vocabulary"),
        text=metadata.get("text"),
    )
    return with_weights(source, PLAIN, weights)


def with_weights(source: Source, order: Sequence[str], choice: str | None) -> Source:
    """Returns the source with one of its sets of weights as its tensors.

    Prefixes of wrappers are removed from names, and float8 weights are scaled.

    Args:
      source: source with all sets of weights.
      order: names of sets in order of preference, if the user chose none.
      choice: name of the set that the user chose.

    Raises:
      DataError: there is no such set, the choice is ambiguous, or two tensors of the
        set have the same name.
    """
    name = select_weights(source.sets, source.name, order, choice)
    try:
        tensors, prefixes = strip_wrappers(source.sets[name])
    except ValueError as error:
        raise DataError(f"'{source.name}': {error}") from None
    return replace(
        source,
        tensors=apply_scales(tensors, source.config),
        weights=name,
        prefixes=prefixes,
    )


def _read_files(
    path: Path, allow_objects: bool
) -> tuple[Sets, list[str], dict[str, Any]]:
    """Reads the sets of weights of a file or folder, and names of other contents.

    The third value has the fields of `Source` that are in the files themselves.

    Raises:
      DataError: a file cannot be read, a tensor is in two files, or the folder's index
        does not fit.
    """
    files = [path] if path.is_file() else weight_files(path)
    sets: Sets = defaultdict(dict)
    left_out: list[str] = []
    names: dict[str, list[str]] = {}
    metadata: dict[str, Any] = {}
    for file in files:
        file_sets, file_left_out, file_metadata = _read(file, allow_objects)
        metadata |= file_metadata
        left_out += file_left_out
        names[file.name] = [
            name
            for tensors in file_sets.values()
            for name, tensor in tensors.items()
            if not tensor.alias
        ]
        for key, tensors in file_sets.items():
            for name, tensor in tensors.items():
                if name in sets[key]:
                    raise DataError(
                        f"the tensor {name} is in '{sets[key][name].file.name}' and in "
                        f"'{file.name}', but may exist only once"
                    )
                sets[key][name] = tensor
    index = index_of(path)
    if index is not None:
        check_index(index, names)
    return dict(sets), left_out, metadata


def _read(file: Path, allow_objects: bool) -> tuple[Sets, list[str], dict[str, Any]]:
    """Sets of weights of a file, names of its other contents, and further fields."""
    try:
        form = format_of(file) or SUFFIXES.get(file.suffix)
        if form == "gguf":
            tensors, config, metadata = read_gguf(file)
            fields = {
                "config": config,
                "vocabulary": partial(tokenizer_json, metadata),
                "text": text_settings(metadata),
            }
            return *weight_sets(tensors, file), fields
        if form == "safetensors":
            fields = {"header": header_settings(file)}
            return *weight_sets(read_safetensors(file), file), fields
        value, refused = read_torch(file, allow_objects=allow_objects)
    except OSError as error:
        raise DataError(f"cannot read '{file}': {error.strerror}") from None
    sets, left_out = weight_sets(value, file)
    return sets, [*refused, *left_out], {}


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return read_json(file) if file.is_file() else {}
