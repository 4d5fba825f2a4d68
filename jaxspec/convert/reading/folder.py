"""Weight files of a folder, and the index that lists them."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxspec.convert.reading.formats import SUFFIXES, format_of
from jaxspec.convert.reading.safetensors import unique_keys
from jaxspec.convert.reading.source import printable
from jaxspec.errors import DataError


def weight_files(folder: Path) -> list[Path]:
    """Finds the files by the folder's index, else by suffix, else by content.

    Raises:
      DataError: there is no file, there are several that could each be a model, or the
        index names a missing or invalid one.
    """
    index = index_of(folder)
    if index is not None:
        for name in weight_map(index).values():
            # A path could point outside the folder.
            if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.\-]*", name):
                text = printable(str(name)[:200])
                raise DataError(f"'{index}' names the file {text}: no plain name")
            if not (folder / name).is_file():
                raise DataError(f"'{folder / name}' is missing, but '{index}' names it")
        return [folder / name for name in dict.fromkeys(weight_map(index).values())]
    files = sorted(f for f in folder.iterdir() if f.is_file())
    with_suffix = [f for f in files if f.suffix in SUFFIXES]
    formats = {f: format_of(f) or SUFFIXES.get(f.suffix) for f in with_suffix or files}
    for name in ("safetensors", "torch", "gguf"):
        matches = [f for f, format_name in formats.items() if format_name == name]
        if len(matches) == 1:
            return matches
        if matches:
            raise DataError(
                f"'{folder}' has no index and {len(matches)} files that may be a model "
                f"({abbreviate(f.name for f in matches)}); name one of them"
            )
    raise DataError(f"'{folder}' has no {', '.join(SUFFIXES)} file")


def index_of(folder: Path) -> Path | None:
    """Returns the `*.index.json` of a folder, preferably that of safetensors files."""
    if not folder.is_dir():
        return None
    files = sorted(
        folder.glob("*.index.json"), key=lambda f: "safetensors" not in f.name
    )
    return files[0] if files else None


def weight_map(index: Path) -> dict[str, str]:
    """Reads the file name of every tensor from an index.

    Raises:
      DataError: the index is damaged.
    """
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise DataError(f"'{index}' is damaged (no weight_map); fetch it again")
    return files


def check_index(index: Path, tensors: Mapping[str, Iterable[str]]) -> None:
    """Compares an index with its files.

    Args:
      index: path of the index.
      tensors: names of the tensors in each file, by the file's name.

    Raises:
      DataError: they differ; the message lists the tensors in question.
    """
    listed = weight_map(index)
    problems = []
    for file, names in tensors.items():
        in_file = set(names)
        in_index = {name for name, other in listed.items() if other == file}
        if missing := in_index - in_file:
            problems.append(f"'{file}' lacks {abbreviate(missing)}")
        if extra := in_file - in_index:
            problems.append(f"'{file}' holds {abbreviate(extra)}, not listed for it")
    if problems:
        raise DataError(
            f"'{index}' and the files beside it do not agree: {'; '.join(problems)}. "
            "Fetch all of them again, from one revision"
        )


def read_json(file: Path) -> dict[str, Any]:
    """Reads an object from a JSON file.

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


def abbreviate(names: Iterable[Any], limit: int = 4) -> str:
    """Joins names for a message, at most `limit` of them."""
    names = sorted(map(str, names))
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
