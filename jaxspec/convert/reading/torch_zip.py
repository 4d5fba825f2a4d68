"""PyTorch's zip files (.pt, .pth, .bin, .ckpt), read without running them.

Such a file holds a pickle, which is a program; see `pickled`. Only the few functions
that build tensors are known, as descriptions of views (`torch_tensors`); any other name
is refused.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.convert.reading.formats import ZIP, other_format
from jaxspec.convert.reading.pickled import (
    INERT,
    Interpreter,
    PickleError,
)
from jaxspec.convert.reading.stored import Stored, printable
from jaxspec.convert.reading.torch_tensors import (
    BYTES,
    KNOWN,
    STORAGES,
    Kind,
    Storage,
    View,
    damaged,
)
from jaxspec.errors import DataError

# Larger programs than this describe no model.
MOST_PICKLE = 64 << 20


def read_torch(file: Path, *, allow_objects: bool = False) -> tuple[Any, list[str]]:
    """What a file holds, tensors as `Stored`, and the names of what was left out.

    Args:
      file: in PyTorch's zip format.
      allow_objects: let objects that are no tensors be replaced by inert ones; their
        code is not run and not even looked for.

    Raises:
      DataError: it is of another format, damaged, or holds anything else than tensors
        in plain containers.
    """
    with open(file, "rb") as stream:
        magic = stream.read(8)
    if magic[:4] != ZIP:
        raise damaged(file, other_format(magic))
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(file, archive, allow_objects)
    except (DataError, OSError):
        raise
    except Exception as error:  # a damaged zip file can raise more than BadZipFile
        reason = str(error).replace("\n", " ")[:120]
        raise damaged(
            file, f"it is truncated or damaged ({reason}); fetch it again"
        ) from None


def _read_archive(
    file: Path, archive: zipfile.ZipFile, allow_objects: bool
) -> tuple[Any, list[str]]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in entries:
            raise damaged(file, f"it has two entries '{info.filename}'")
        if info.compress_type != zipfile.ZIP_STORED:
            raise damaged(file, f"'{info.filename}' is compressed, PyTorch's never are")
        entries[info.filename] = info
    programs = [n for n in entries if n.endswith("/data.pkl") and n.count("/") == 1]
    if any(name.endswith("/constants.pkl") for name in entries):
        raise damaged(file, "it is a TorchScript program; save the state dict instead")
    if len(programs) != 1:
        raise damaged(file, "it is a zip file, but not one of PyTorch's")
    [program] = programs
    root = program.removesuffix("data.pkl")
    if entries[program].file_size > MOST_PICKLE:
        raise damaged(file, f"its pickle has {entries[program].file_size} bytes")
    order = entries.get(root + "byteorder")
    if order is not None and archive.read(order).strip() != b"little":
        raise damaged(file, "its numbers are big-endian; save it on another machine")
    text = archive.read(program)
    found: dict[tuple[str, str], Storage] = {}
    refused: list[str] = []

    def find(module: str, name: str) -> Any:
        known = KNOWN.get((module, name))
        if known is not None:
            return known
        if module in ("torch", "torch.storage") and name in (*STORAGES, BYTES):
            return Kind(name)
        refused.append(printable(f"{module}.{name}"))
        return INERT

    def refer(reference: Any) -> Storage:
        if not isinstance(reference, tuple) or len(reference) < 5:
            raise PickleError("it has a reference of an unknown kind")
        mark, kind, key, _, count = reference[:5]
        if mark != "storage" or not isinstance(kind, Kind) or not isinstance(key, str):
            raise PickleError("it has a storage of an unknown kind")
        if (kind.name, key) not in found:
            info = entries.get(f"{root}data/{key}")
            if info is None:
                raise PickleError(f"storage {printable(key)} is missing")
            made = Storage(file, info, np.dtype(STORAGES.get(kind.name, np.uint8)))
            if type(count) is not int or not 0 <= count <= made.count:
                raise PickleError(f"storage {printable(key)} is shorter than it says")
            found[kind.name, key] = made
        return found[kind.name, key]

    try:
        value = _described(Interpreter(find, refer).run(text), file)
    except PickleError as error:
        if not refused or allow_objects:
            raise damaged(file, str(error)) from None
        value = None  # what is refused comes first
    if refused and not _weights(value):
        raise damaged(file, _no_weights(refused))
    if refused and not allow_objects:
        raise damaged(
            file,
            f"it wants to use {refused[0]}, which no tensor needs. If you trust where "
            "the file is from, --allow-objects leaves such objects out without loading "
            "them",
        )
    return value, refused


def _weights(value: Any) -> bool:
    """Whether tensors by name are there, in a dict or in a dict that it holds."""
    inside = list(value.values()) if isinstance(value, dict) else []
    inside += [x for d in inside if isinstance(d, dict) for x in d.values()]
    return any(isinstance(x, Stored) for x in inside)


def _no_weights(refused: list[str]) -> str:
    """What a file is that holds objects, and no tensors by name beside them."""
    tensors = [name for name in refused if name.startswith("torch._utils._rebuild")]
    if tensors:
        return (
            f"its tensors are of a kind that is not read ({tensors[0]}); save them as "
            "plain dense ones"
        )
    return (
        f"it holds a whole object ({refused[0]}) and no tensors by name: only the code "
        "that made it can read it. Where you trust it, load it with that code and save "
        "its state_dict()"
    )


def _described(value: Any, file: Path) -> Any:
    """Views as `Stored`: in a dict, and in the dicts that it holds."""
    known: dict[int, Any] = {}

    def one(x: Any, depth: int) -> Any:
        if isinstance(x, View):
            return Stored(
                x.shape,
                x.storage.dtype,
                file,
                lambda: x.storage.view(x.first, x.shape, x.strides),
            )
        if isinstance(x, dict) and depth < 2:
            if id(x) not in known:
                known[id(x)] = {k: one(v, depth + 1) for k, v in x.items()}
            return known[id(x)]
        return x

    return one(value, 0)
