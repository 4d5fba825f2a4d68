"""Reader for PyTorch's zip files (.pt, .pth, .bin, .ckpt) that does not run them.

Such a file holds a pickle, which is a program. It is interpreted by `pickled`, with the
few functions that build tensors (`torch_tensors`); any other function is refused.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.convert.reading.formats import ZIP, other_format
from jaxspec.convert.reading.pickled import (
    INERT,
    Interpreter,
    PickleError,
)
from jaxspec.convert.reading.source import Stored, printable
from jaxspec.convert.reading.torch_tensors import (
    BYTES,
    KNOWN,
    STORAGES,
    Storage,
    StorageClass,
    View,
    damaged,
)
from jaxspec.errors import DataError

# Size of a pickle in bytes that no state dict exceeds.
MAX_PICKLE_BYTES = 64 << 20


def read_torch(file: Path, *, allow_objects: bool = False) -> tuple[Any, list[str]]:
    """Reads the value that a file holds, with its tensors as `Stored`.

    Args:
      file: path of a file in PyTorch's zip format.
      allow_objects: whether to replace objects that are no tensors by placeholders
        instead of refusing the file; their code is neither run nor imported.

    Returns:
      The value, and the names of the replaced classes and functions.

    Raises:
      DataError: the file has another format, is damaged, or holds anything but tensors
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
    root, entries = _check_entries(file, archive)
    pickle = archive.read(root + "data.pkl")
    refused: list[str] = []

    def find_global(module: str, name: str) -> Any:
        known = KNOWN.get((module, name))
        if known is not None:
            return known
        if module in ("torch", "torch.storage") and name in (*STORAGES, BYTES):
            return StorageClass(name)
        refused.append(printable(f"{module}.{name}"))
        return INERT

    try:
        find_storage = _storage_reader(file, root, entries)
        value = Interpreter(find_global, find_storage).run(pickle)
        value = _views_as_stored(value, file)
    except PickleError as error:
        if not refused or allow_objects:
            raise damaged(file, str(error)) from None
        value = None  # report the refused names first
    if refused and not _has_tensors(value):
        raise damaged(file, _no_tensors_message(refused))
    if refused and not allow_objects:
        raise damaged(
            file,
            f"it refers to {refused[0]}, which no tensor needs. If you trust the file, "
            "--allow-objects leaves such objects out without loading them",
        )
    return value, refused


def _check_entries(
    file: Path, archive: zipfile.ZipFile
) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """Returns the root folder in the archive, and all entries by name.

    Raises:
      DataError: the archive is not one of PyTorch's, or damaged.
    """
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in entries:
            raise damaged(file, f"it has two entries '{info.filename}'")
        if info.compress_type != zipfile.ZIP_STORED:
            raise damaged(
                file, f"'{info.filename}' is compressed, which PyTorch never does"
            )
        entries[info.filename] = info
    programs = [n for n in entries if n.endswith("/data.pkl") and n.count("/") == 1]
    if any(name.endswith("/constants.pkl") for name in entries):
        raise damaged(file, "it is a TorchScript program; save the state dict instead")
    if len(programs) != 1:
        raise damaged(file, "it is a zip file, but not one of PyTorch's")
    [program] = programs
    root = program.removesuffix("data.pkl")
    if entries[program].file_size > MAX_PICKLE_BYTES:
        raise damaged(file, f"its pickle has {entries[program].file_size} bytes")
    order = entries.get(root + "byteorder")
    if order is not None and archive.read(order).strip() != b"little":
        raise damaged(file, "it is big-endian; save it on another machine")
    return root, entries


def _storage_reader(
    file: Path, root: str, entries: Mapping[str, zipfile.ZipInfo]
) -> Callable[[Any], Storage]:
    """Returns the function from a persistent reference to its storage."""
    storages: dict[tuple[str, str], Storage] = {}

    def find_storage(reference: Any) -> Storage:
        if not isinstance(reference, tuple) or len(reference) < 5:
            raise PickleError("it has a reference of an unknown kind")
        tag, kind, key, _, count = reference[:5]
        if (
            tag != "storage"
            or not isinstance(kind, StorageClass)
            or not isinstance(key, str)
        ):
            raise PickleError("it has a storage of an unknown kind")
        if (kind.name, key) not in storages:
            info = entries.get(f"{root}data/{key}")
            if info is None:
                raise PickleError(f"storage {printable(key)} is missing")
            storage = Storage(file, info, np.dtype(STORAGES.get(kind.name, np.uint8)))
            if type(count) is not int or not 0 <= count <= storage.count:
                raise PickleError(f"storage {printable(key)} is shorter than its size")
            storages[kind.name, key] = storage
        return storages[kind.name, key]

    return find_storage


def _has_tensors(value: Any) -> bool:
    """Returns whether a dict, or a dict in it, holds tensors."""
    values = list(value.values()) if isinstance(value, dict) else []
    values += [x for d in values if isinstance(d, dict) for x in d.values()]
    return any(isinstance(x, Stored) for x in values)


def _no_tensors_message(refused: list[str]) -> str:
    """Describes a file that holds objects, but no tensors by name."""
    tensors = [name for name in refused if name.startswith("torch._utils._rebuild")]
    if tensors:
        return (
            f"its tensors are of an unsupported kind ({tensors[0]}); save them "
            "as plain dense ones"
        )
    return (
        f"it holds a whole object ({refused[0]}) and no tensors by name: only the code "
        "that made it can read it. If you trust the file, load it with that code and "
        "save its state_dict()"
    )


def _views_as_stored(value: Any, file: Path) -> Any:
    """Replaces views by `Stored`, in a dict and in the dicts that it holds."""
    converted: dict[int, Any] = {}

    def convert(x: Any, depth: int) -> Any:
        if isinstance(x, View):
            return Stored(
                x.shape,
                x.storage.dtype,
                file,
                lambda: x.storage.view(x.first, x.shape, x.strides),
            )
        if isinstance(x, dict) and depth < 2:
            if id(x) not in converted:
                converted[id(x)] = {k: convert(v, depth + 1) for k, v in x.items()}
            return converted[id(x)]
        return x

    return convert(value, 0)
