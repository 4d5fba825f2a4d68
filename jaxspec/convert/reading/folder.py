"""The files that hold a folder's model, and the index that names them."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxspec.convert.reading.formats import SUFFIXES, format_of
from jaxspec.convert.reading.safetensors import unique_keys
from jaxspec.convert.reading.stored import printable
from jaxspec.errors import DataError


def weight_files(folder: Path) -> list[Path]:
    """By the folder's index, else by names, else by content.

    Raises:
      DataError: there are none, or several that could each be a model.
    """
    index = index_of(folder)
    if index is not None:
        for name in weight_map(index).values():
            # A path in an index could point anywhere.
            if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.\-]*", name):
                shown = printable(str(name)[:200])
                raise DataError(f"'{index}' names the file {shown}: no plain name")
            if not (folder / name).is_file():
                raise DataError(f"'{folder / name}' is missing, but '{index}' names it")
        return [folder / name for name in dict.fromkeys(weight_map(index).values())]
    there = sorted(f for f in folder.iterdir() if f.is_file())
    named = [f for f in there if f.suffix in SUFFIXES]
    kinds = {f: format_of(f) or SUFFIXES.get(f.suffix) for f in named or there}
    for kind in ("safetensors", "torch"):
        files = [f for f, found in kinds.items() if found == kind]
        if len(files) == 1:
            return files
        if files:
            raise DataError(
                f"'{folder}' has no index and {len(files)} files that may be a model "
                f"({some(f.name for f in files)}); name one of them"
            )
    raise DataError(f"'{folder}' has no {', '.join(SUFFIXES)} file")


def index_of(folder: Path) -> Path | None:
    """The `*.index.json` of a folder; that of safetensors files before others."""
    if not folder.is_dir():
        return None
    found = sorted(
        folder.glob("*.index.json"), key=lambda f: "safetensors" not in f.name
    )
    return found[0] if found else None


def weight_map(index: Path) -> dict[str, str]:
    """The file of every tensor, as an index lists them.

    Raises:
      DataError: the index is damaged.
    """
    record = read_json(index).get("weight_map")
    if not isinstance(record, dict) or not record:
        raise DataError(f"'{index}' is damaged (no weight_map); fetch it again")
    return record


def check_index(index: Path, found: Mapping[str, Iterable[str]]) -> None:
    """Compares an index with its files.

    Args:
      index: lists the file of every tensor.
      found: names of the tensors in each file, by the file's name.

    Raises:
      DataError: they differ; lists which file lacks or has which tensors.
    """
    listed = weight_map(index)
    problems = []
    for file, names in found.items():
        here = set(names)
        if lacking := {n for n, where in listed.items() if where == file} - here:
            problems.append(f"'{file}' lacks {some(lacking)}")
        if extra := {n for n in here if listed.get(n) != file}:
            problems.append(f"'{file}' holds {some(extra)}, not listed for it")
    if problems:
        raise DataError(
            f"'{index}' and the files beside it do not agree: {'; '.join(problems)}. "
            "Fetch all of them again, from one revision"
        )


def read_json(file: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
      DataError: the file is damaged.
    """
    try:
        value = json.loads(file.read_bytes(), object_pairs_hook=unique_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{file}' is damaged ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise DataError(f"'{file}' is damaged (no object); fetch it again")
    return value


def some(names: Iterable[Any], most: int = 4) -> str:
    """The first few of many names, for a message."""
    names = sorted(map(str, names))
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
