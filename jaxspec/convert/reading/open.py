"""A file, a folder or a repository of the hub as a `Source`."""

import json
import os
import re
from pathlib import Path
from typing import Any

from jaxspec.convert.reading.hub import download
from jaxspec.convert.reading.safetensors import read_safetensors, unique_keys
from jaxspec.convert.reading.stored import Source, Stored, printable
from jaxspec.convert.reading.torch_zip import read_torch
from jaxspec.errors import DataError

TORCH = (".pt", ".pth", ".bin", ".ckpt", ".th")
# Names under which trainers keep the state dict in what they save.
CONTAINERS = ("model", "module", "state_dict", "model_state_dict")


def open_source(place: str | os.PathLike, *, allow_objects: bool = False) -> Source:
    """Finds the tensors of a model; none is read yet.

    Args:
      place: a file (.safetensors, or a zip of PyTorch's), a folder with one model in
        one or several such files, or `OWNER/NAME[@REVISION][:FILE]` on the hub.
      allow_objects: see `read_torch`.

    Raises:
      DataError: there is nothing there, or it cannot be used; says why.
    """
    path, revision = Path(place), None
    if not os.path.lexists(path):
        path, revision = download(str(place))
    if not path.is_file() and not path.is_dir():
        raise DataError(f"'{place}' is neither a file nor a folder")
    files = [path] if path.is_file() else _files(path)
    tensors: dict[str, Stored] = {}
    left_out: list[str] = []
    for file in files:
        found, other = _read(file, allow_objects)
        left_out += other
        for name, tensor in found.items():
            if name in tensors:
                raise DataError(
                    f"the tensor {name} is in '{tensors[name].file.name}' and in "
                    f"'{file.name}'; a model has each once"
                )
            tensors[name] = tensor
    folder = path if path.is_dir() else path.parent
    index = _index(path)
    if path.is_dir() and index is not None:
        listed = set(_weight_map(index))
        if listed != set(tensors):
            raise DataError(
                f"'{index}' and the files beside it do not agree: "
                f"{_some(listed ^ set(tensors))}; fetch all of them again"
            )
    if not tensors:
        raise DataError(f"'{place}' holds no tensors")
    return Source(
        str(place) if revision else path.name,
        tensors,
        _config(folder),
        folder,
        revision,
        tuple(dict.fromkeys(left_out)),
    )


def _read(file: Path, allow_objects: bool) -> tuple[dict[str, Stored], list[str]]:
    try:
        if file.suffix == ".safetensors":
            return read_safetensors(file), []
        value, refused = read_torch(file, allow_objects=allow_objects)
    except OSError as error:
        raise DataError(f"cannot read '{file}': {error.strerror}") from None
    return _state_dict(value, file, refused)


def _state_dict(value: Any, file: Path, left_out: list[str]):
    """The tensors by name, out of the container that a trainer put them in."""
    if isinstance(value, dict):
        inner = [value[k] for k in CONTAINERS if _holds_tensors(value.get(k))]
        if inner:
            others = [k for k in value if value[k] is not inner[0]]
            left_out = [*left_out, *(f"[{printable(str(k))}]" for k in others)]
            value = inner[0]
    if not isinstance(value, dict):
        value = {}
    tensors = {k: v for k, v in value.items() if isinstance(v, Stored)}
    if not tensors:
        raise DataError(
            f"'{file}' holds no state dict: neither tensors by name nor one of "
            f"{', '.join(CONTAINERS)}"
        )
    wrong = [k for k in tensors if not isinstance(k, str) or printable(k) != k]
    if wrong:
        raise DataError(f"'{file}': {printable(str(wrong[0]))} is no name of a tensor")
    others = [printable(str(k)) for k in value if k not in tensors]
    return tensors, [*left_out, *others]


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(
        isinstance(x, Stored) for x in value.values()
    )


def _files(folder: Path) -> list[Path]:
    """The files that hold a folder's model, by its index or by their names."""
    index = _index(folder)
    if index is not None:
        named = list(_weight_map(index).values())
        for name in named:
            # A path in an index could point anywhere.
            if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.\-]*", name):
                shown = printable(str(name)[:200])
                raise DataError(f"'{index}' names the file {shown}: no plain name")
        names = list(dict.fromkeys(named))
        for name in names:
            if not (folder / name).is_file():
                raise DataError(f"'{folder / name}' is missing, but '{index}' names it")
        return [folder / name for name in names]
    for suffixes in ((".safetensors",), TORCH):
        files = sorted(f for f in folder.iterdir() if f.suffix in suffixes)
        if len(files) == 1:
            return files
        if files:
            raise DataError(
                f"'{folder}' has no index and {len(files)} files that may be a model "
                f"({_some([f.name for f in files])}); name one of them"
            )
    raise DataError(f"'{folder}' has no .safetensors, {', '.join(TORCH)} file")


def _index(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    found = sorted(path.glob("*.index.json"), key=lambda f: "safetensors" not in f.name)
    return found[0] if found else None


def _weight_map(index: Path) -> dict[str, str]:
    record = _json(index).get("weight_map")
    if not isinstance(record, dict) or not record:
        raise DataError(f"'{index}' is damaged (no weight_map); fetch it again")
    return record


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return _json(file) if file.is_file() else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(), object_pairs_hook=unique_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{file}' is damaged ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise DataError(f"'{file}' is damaged (no object); fetch it again")
    return value


def _some(names: Any, most: int = 4) -> str:
    names = sorted(map(str, names))
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
