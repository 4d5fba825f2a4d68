"""Writers for files in PyTorch's zip format, valid and hostile ones."""

import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

from jaxspec.convert.reading.safetensors import write_safetensors

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.bool_): "BoolStorage",
    np.dtype(np.complex64): "ComplexFloatStorage",
}
# Newer dtypes have no storage class.
DTYPES = {
    np.dtype(ml_dtypes.float8_e4m3fn): "float8_e4m3fn",
    np.dtype(ml_dtypes.float8_e5m2): "float8_e5m2",
    np.dtype(np.uint64): "uint64",
}


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    return pickle.dumps(value, protocol=2)[2:-1]


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def function(module, name):
    return f"c{module}\n{name}\n".encode()


def storage(kind, key, count):
    module = "torch.storage" if kind == "UntypedStorage" else "torch"
    parts = text("storage") + function(module, kind) + text(key) + text("cpu")
    return b"(" + parts + number(count) + b"tQ"


def tensor(kind, key, count, first, shape, strides, dtype=None):
    """Returns a pickled call of `_rebuild_tensor_v2`, or of v3 with a dtype."""
    hooks = function("collections", "OrderedDict") + b")R"
    arguments = storage(kind, key, count) + number(first)
    arguments += numbers(shape) + numbers(strides) + b"\x89" + hooks
    if dtype:
        arguments += function("torch", dtype)
    version = "v3" if dtype else "v2"
    call = function("torch._utils", f"_rebuild_tensor_{version}")
    return call + b"(" + arguments + b"tR"


def record(entries):
    """Returns a pickled dict of names to pickled values."""
    items = b"".join(text(name) + value for name, value in entries.items())
    return b"}(" + items + b"u"


def program(body):
    return b"\x80\x02" + body + b"."


def whole(key, array):
    """Returns a pickled contiguous tensor that covers its storage."""
    strides = [s // array.itemsize for s in array.strides]
    if array.dtype in DTYPES:
        dtype, count = DTYPES[array.dtype], array.nbytes
        return tensor("UntypedStorage", key, count, 0, array.shape, strides, dtype)
    kind = STORAGES[array.dtype]
    return tensor(kind, key, array.size, 0, array.shape, strides)


def write_zip(file, body, storages, *, extra=(), compression=zipfile.ZIP_STORED):
    """Writes the archive; `storages` are arrays by key."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program(body))
        archive.writestr("archive/byteorder", b"little")
        for key, array in storages.items():
            archive.writestr(
                f"archive/data/{key}", np.ascontiguousarray(array).tobytes()
            )
        archive.writestr("archive/version", b"3\n")
        for name, value in extra:
            archive.writestr(name, value)


def save(file, state):
    """Writes what `torch.save(state)` would, each array in a separate storage.

    `state` holds arrays, dicts of arrays, and bytes: values that are pickled already.
    """
    arrays = {}

    def pickled(value):
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict):
            return record({name: pickled(x) for name, x in value.items()})
        key = str(len(arrays))
        arrays[key] = np.asarray(value, order="C")
        return whole(key, arrays[key])

    write_zip(file, pickled(state), arrays)


def write(file, state):
    """Writes a safetensors file or a PyTorch file, depending on the suffix."""
    if file.suffix != ".safetensors":
        return save(file, state)
    table = [(name, x.shape, x.dtype) for name, x in state.items()]
    return write_safetensors(file, table, state.__getitem__)
