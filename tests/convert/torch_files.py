"""Files in PyTorch's zip format, written by hand: honest ones and others."""

import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.bool_): "BoolStorage",
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
    parts = text("storage") + function("torch", kind) + text(key) + text("cpu")
    return b"(" + parts + number(count) + b"tQ"


def tensor(kind, key, count, first, shape, strides):
    """A call of `_rebuild_tensor_v2`."""
    hooks = function("collections", "OrderedDict") + b")R"
    arguments = storage(kind, key, count) + number(first)
    arguments += numbers(shape) + numbers(strides) + b"\x89" + hooks
    return function("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def record(entries):
    """A dict of names to pickled values."""
    items = b"".join(text(name) + value for name, value in entries.items())
    return b"}(" + items + b"u"


def program(body):
    return b"\x80\x02" + body + b"."


def whole(key, array):
    """A contiguous tensor that is all of its storage."""
    strides = [s // array.itemsize for s in array.strides]
    kind = STORAGES[array.dtype]
    return tensor(kind, key, array.size, 0, array.shape, strides)


def write_zip(file, body, storages, *, extra=(), compression=zipfile.ZIP_STORED):
    """The archive; `storages` are arrays by key."""
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
    """What `torch.save(state)` would write, each array in a storage of its own."""
    arrays = {str(i): np.asarray(x, order="C") for i, x in enumerate(state.values())}
    entries = {
        name: whole(key, x)
        for name, (key, x) in zip(state, arrays.items(), strict=True)
    }
    write_zip(file, record(entries), arrays)
