"""Reading of PyTorch's files, bit by bit and without running code from them."""

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxspec.convert.reading.open import open_source
from jaxspec.convert.reading.torch_zip import read_torch
from jaxspec.errors import DataError
from tests.convert import torch_files as t

RNG = np.random.default_rng(0)
STATE = {
    "a.weight": RNG.normal(size=(3, 4)).astype(np.float32),
    "b.weight": RNG.normal(size=(5,)).astype(ml_dtypes.bfloat16),
    "c.weight": RNG.normal(size=(2, 1, 3)).astype(np.float16),
    "scalar": np.array(2.5, np.float32),
    "none": np.zeros((0, 4), np.float32),
    "ids": np.arange(4),
    "turns": np.array([1 + 2j, -3j], np.complex64),
    "large": np.array(1 << 63, np.uint64),
    "eighths": RNG.normal(size=(2, 3)).astype(ml_dtypes.float8_e4m3fn),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.pt"
    t.save(path, STATE)
    return path


def test_every_dtype_and_shape_is_read_bit_by_bit(file):
    tensors = open_source(file).tensors
    assert list(tensors) == list(STATE)
    for name, expected in STATE.items():
        x = tensors[name].read()
        assert (tensors[name].shape, tensors[name].dtype) == (x.shape, x.dtype)
        assert (x.dtype, x.shape) == (expected.dtype, expected.shape)
        assert x.tobytes() == expected.tobytes()


def test_views_share_a_storage(tmp_path):
    base = np.arange(24, dtype=np.float32)
    views = {
        "whole": t.tensor("FloatStorage", "0", 24, 0, (4, 6), (6, 1)),
        "turned": t.tensor("FloatStorage", "0", 24, 0, (6, 4), (1, 6)),
        "behind": t.tensor("FloatStorage", "0", 24, 7, (2, 3), (6, 2)),
    }
    t.write_zip(tmp_path / "m.pt", t.record(views), {"0": base})
    tensors, _ = read_torch(tmp_path / "m.pt")
    square = base.reshape(4, 6)
    np.testing.assert_array_equal(tensors["whole"].read(), square)
    np.testing.assert_array_equal(tensors["turned"].read(), square.T)
    np.testing.assert_array_equal(tensors["behind"].read(), [[7, 9, 11], [13, 15, 17]])


def test_shared_dicts_are_read_once(tmp_path):
    """Seven levels of a hundred names for the same dict: 10^14 paths to one tensor."""
    body = t.record({"w": t.whole("0", X)}) + b"q\1"
    for level in range(7):
        body += b"0" + t.record({str(i): b"h" + bytes([level + 1]) for i in range(100)})
        body += b"q" + bytes([level + 2])
    t.write_zip(tmp_path / "m.pt", body, {"0": X})
    with pytest.raises(DataError, match="holds no state dict"):
        open_source(tmp_path / "m.pt")


def test_a_tensor_beside_the_state_dict_does_not_hide_it(tmp_path):
    body = t.record(
        {"step": t.whole("0", X), "model": t.record({"w": t.whole("0", X)})}
    )
    t.write_zip(tmp_path / "m.pt", body, {"0": X})
    source = open_source(tmp_path / "m.pt")
    assert list(source.tensors) == ["w"] and source.left_out == ("[step]",)


@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_the_state_dict_is_found_in_what_trainers_save(tmp_path, key):
    x = np.ones(3, np.float32)
    body = t.record({key: t.record({"w": t.whole("0", x)}), "steps": t.number(7)})
    t.write_zip(tmp_path / "m.pt", body, {"0": x})
    source = open_source(tmp_path / "m.pt")
    assert list(source.tensors) == ["w"] and source.left_out == ("[steps]",)


def hostile(command):
    """Returns a pickled call of `os.system(command)`."""
    return t.function("os", "system") + b"(" + t.text(command) + b"tR"


def test_code_in_a_file_is_refused_and_never_run(tmp_path):
    evidence = tmp_path / "ran"
    x = np.ones(2, np.float32)
    body = t.record({"w": t.whole("0", x), "evil": hostile(f"touch {evidence}")})
    t.write_zip(tmp_path / "m.pt", body, {"0": x})
    with pytest.raises(DataError, match=r"os\.system.*--allow-objects"):
        read_torch(tmp_path / "m.pt")
    found, refused = read_torch(tmp_path / "m.pt", allow_objects=True)
    assert refused == ["os.system"] and not evidence.exists()
    np.testing.assert_array_equal(found["w"].read(), x)


def test_a_namespace_of_arguments_is_left_out(tmp_path):
    """LlamaGen's trainer saves its command line beside the weights."""
    x = np.ones(2, np.float32)
    args = t.function("argparse", "Namespace") + b")\x81"
    args += t.record({"lr": t.number(3)}) + b"b"
    body = t.record({"model": t.record({"w": t.whole("0", x)}), "args": args})
    t.write_zip(tmp_path / "m.pt", body, {"0": x})
    with pytest.raises(DataError, match="argparse.Namespace"):
        open_source(tmp_path / "m.pt")
    source = open_source(tmp_path / "m.pt", allow_objects=True)
    assert list(source.tensors) == ["w"]
    assert "argparse.Namespace" in source.left_out


def test_a_number_of_64_bits_beside_the_weights_is_left_out(tmp_path):
    """Seeds of PyTorch's generators have 64 bits."""
    t.save(tmp_path / "m.pt", {"model": {"w": X}, "seed": t.number((1 << 64) - 1)})
    source = open_source(tmp_path / "m.pt")
    assert list(source.tensors) == ["w"] and source.left_out == ("[seed]",)


MODULE = (
    t.function("models.gpt", "GPT") + b")\x81" + t.record({"w": t.number(1)}) + b"b"
)


@pytest.mark.parametrize(
    "body", [MODULE, t.record({"model": MODULE, "x": MODULE})], ids=["alone", "in dict"]
)
@pytest.mark.parametrize("lenient", [False, True])
def test_allow_objects_is_not_suggested_for_a_whole_object(tmp_path, body, lenient):
    t.write_zip(tmp_path / "m.pt", body, {})
    with pytest.raises(
        DataError, match=r"whole object \(models.gpt.GPT\).*save its state_dict"
    ) as error:
        open_source(tmp_path / "m.pt", allow_objects=lenient)
    assert "--allow-objects" not in str(error.value)


X = np.arange(6, dtype=np.float32)
HOSTILE = {
    "a shape bomb": t.tensor("FloatStorage", "0", 6, 0, (1 << 40,), (0,)),
    "a huge stride": t.tensor("FloatStorage", "0", 6, 0, (2, 3), (1 << 40, 1)),
    "behind the end": t.tensor("FloatStorage", "0", 6, 5, (2,), (1,)),
    "before the start": t.tensor("FloatStorage", "0", 6, -3, (2,), (1,)),
    "a negative shape": t.tensor("FloatStorage", "0", 6, 0, (-1, -6), (1, 1)),
    "unequal lengths": t.tensor("FloatStorage", "0", 6, 0, (2, 3), (1,)),
    "more than there is": t.tensor("FloatStorage", "0", 1 << 40, 0, (6,), (1,)),
    "no such storage": t.tensor("FloatStorage", "../0", 6, 0, (6,), (1,)),
    "bytes of no dtype": t.tensor("UntypedStorage", "0", 24, 0, (6,), (1,), "Size"),
    "more than the bytes": t.tensor("UntypedStorage", "0", 24, 0, (4,), (1,), "uint64"),
    "an unknown storage": t.tensor("ComplexStorage", "0", 6, 0, (6,), (1,)),
    "a changed view": t.whole("0", X) + t.record({"first": t.number(9)}) + b"b",
    "a changed function": t.function("torch._utils", "_rebuild_tensor_v2")
    + b"(N" + t.record({"__defaults__": t.numbers((1,))}) + b"tb",
    "a changed storage": t.storage("FloatStorage", "0", 6)
    + t.record({"file": t.text("/etc/passwd")}) + b"b",
    "an extension": b"\x82\x01",
    "an old instance": b"(ios\nsystem\n",
    "an object": b"(" + t.function("os", "system") + t.text("true") + b"o",
    "a deep key": b"}(" + b")" + b"\x85" * 400_000 + b"K\x01u",
    "an exponential key": b"}(" + b")" + b"2\x86" * 40 + b"K\x01u",
    "an exponential reference": b")" + b"2\x86" * 40 + b"Q",
    "a size of bytes": t.function("torch", "Size") + b"B\4\0\0\0abcd\x85R",
    "a number beyond sizes": b"\x8b\x10\0\0\0" + b"\x7f" * 16,
    "hidden bits": t.whole("0", X)[:-2] + t.record({"neg": b"\x88"}) + b"tR",
    "a bare reference": b"P1\n",
    "nothing": b"",
    "a stack that is empty": b"000",
}  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_programs_are_refused(tmp_path, value):
    t.write_zip(tmp_path / "m.pt", t.record({"w": value}), {"0": X})
    for lenient in (False, True):
        with pytest.raises(DataError, match="m.pt"):
            read_torch(tmp_path / "m.pt", allow_objects=lenient)


def stored(path, name, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)


WRONG = {
    "empty": (lambda f: f.write_bytes(b""), "is empty"),
    "text": (lambda f: f.write_text("<html>not found</html>"), "neither a safetensors"),
    "before 1.6": (lambda f: f.write_bytes(b"\x80\x02\x8a\nl\xfc"), "before 1.6"),
    "another zip": (lambda f: stored(f, "hello.txt", "hi"), "not one of PyTorch's"),
    "a script": (
        lambda f: t.write_zip(
            f, t.record({}), {}, extra=[("archive/constants.pkl", b"")]
        ),
        "TorchScript",
    ),
    "two programs": (
        lambda f: t.write_zip(f, t.record({}), {}, extra=[("b/data.pkl", b"")]),
        "not one of PyTorch's",
    ),
    "compressed": (
        lambda f: t.write_zip(f, t.record({}), {}, compression=zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "no tensors": (lambda f: t.write_zip(f, t.record({}), {}), "holds no state dict"),
}


@pytest.mark.parametrize("write, message", WRONG.values(), ids=WRONG)
def test_other_files_are_refused_with_a_reason(tmp_path, write, message):
    write(tmp_path / "m.pt")
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path):
    x = np.ones(2, np.float32)
    again = [("archive/data/0", b"\0" * 8)]
    t.write_zip(
        tmp_path / "m.pt", t.record({"w": t.whole("0", x)}), {"0": x}, extra=again
    )
    with pytest.raises(DataError, match="two entries"):
        open_source(tmp_path / "m.pt")


def test_damage_is_detected(file):
    """A truncated or changed file has the same values, or raises an error."""
    whole = file.read_bytes()
    rng = np.random.default_rng(1)
    cuts = [whole[:n] for n in range(0, len(whole), 97)]
    flips = []
    for at in rng.integers(0, len(whole), 400):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        flips.append(bytes(changed))
    before = set(Path(file).parent.rglob("*"))
    detected = 0
    for data in [*cuts, *flips]:
        file.write_bytes(data)
        try:
            found = {k: v.read() for k, v in open_source(file).tensors.items()}
        except DataError as error:
            assert "\n" not in str(error)
            detected += 1
            continue
        # Names may have changed; values are protected by checksums.
        arrays = {x.tobytes() for x in STATE.values()}
        assert all(x.tobytes() in arrays or x.size == 0 for x in found.values())
    assert detected > len(cuts)
    assert set(file.parent.rglob("*")) == before
