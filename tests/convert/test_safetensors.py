"""Reading of safetensors files, single and sharded, and refusal of damaged ones."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from jaxspec.convert.reading.open import open_source
from jaxspec.convert.reading.safetensors import read_safetensors, write_safetensors
from jaxspec.errors import DataError

RNG = np.random.default_rng(0)
STATE = {
    "a.weight": RNG.normal(size=(3, 4)).astype(np.float32),
    "b.weight": RNG.normal(size=(5,)).astype(ml_dtypes.bfloat16),
    "c.weight": RNG.normal(size=(2, 2)).astype(ml_dtypes.float8_e4m3fn),
    "scalar": np.array(2.5, np.float16),
    "none": np.zeros((0, 4), np.float32),
    "ids": np.arange(4),
    "used": np.array([True, False]),
}


def write(file, state):
    table = [(name, x.shape, x.dtype) for name, x in state.items()]
    write_safetensors(file, table, state.__getitem__)


def write_raw(file, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def test_written_files_are_read_bit_by_bit(tmp_path):
    write(tmp_path / "m.safetensors", STATE)
    tensors = read_safetensors(tmp_path / "m.safetensors")
    assert list(tensors) == list(STATE)
    for name, expected in STATE.items():
        x = tensors[name].read()
        assert (x.dtype, x.shape) == (expected.dtype, expected.shape)
        assert x.tobytes() == expected.tobytes()
    assert not list(tmp_path.glob(".*"))  # no temporary file remains


TWICE = b'{"w": %s, "w": %s}' % ((json.dumps(entry()).encode(),) * 2)
WRONG = {
    "twice in the header": (TWICE, "occurs twice"),
    "overlapping": (
        {"a": entry(), "b": entry(data_offsets=[4, 12])},
        "a and b overlap",
    ),
    "another size": ({"w": entry(shape=[3])}, "8 bytes"),
    "behind the end": ({"w": entry(shape=[99], data_offsets=[0, 396])}, "ends at byte"),
    "a shape bomb": (
        {"w": entry(shape=[1 << 62, 1 << 62])},
        "invalid shape or position",
    ),
    "large shapes": ({"w": entry(shape=[1 << 50, 1 << 50])}, "8 bytes"),
    "a negative shape": ({"w": entry(shape=[-2])}, "invalid shape or position"),
    "fractions": ({"w": entry(shape=[2.0])}, "invalid shape or position"),
    "a hundred axes": ({"w": entry(shape=[1] * 100)}, "invalid shape or position"),
    "an empty giant": (
        {"w": entry(shape=[0, 1 << 61], data_offsets=[0, 0])},
        "but 0 bytes",
    ),
    "an unknown dtype": ({"w": entry(dtype="F7")}, "no usable entry"),
    "no offsets": ({"w": {"dtype": "F32", "shape": [2]}}, "no usable entry"),
    "no object": ([1, 2], "is no object"),
    "no JSON": (b"{]", "header"),
    "deep JSON": (b"[" * 100_000, "header"),
}


@pytest.mark.parametrize("header, message", WRONG.values(), ids=WRONG)
def test_an_invalid_header_is_refused(tmp_path, header, message):
    write_raw(tmp_path / "m.safetensors", header, bytes(12))
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "m.safetensors")


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(DataError, match="bytes, the file has 10"):
        open_source(tmp_path / "m.safetensors")


def test_damaged_files_raise_a_data_error(tmp_path):
    file = tmp_path / "m.safetensors"
    write(file, STATE)
    whole, rng = file.read_bytes(), np.random.default_rng(1)
    cuts = [whole[:n] for n in range(0, len(whole) - 1, 13)]
    for data in cuts:
        file.write_bytes(data)
        with pytest.raises(DataError, match="fetch it again"):
            open_source(file)
    for at in rng.integers(0, len(whole), 400):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        file.write_bytes(bytes(changed))
        try:
            [x.read() for x in open_source(file).tensors.values()]
        except DataError as error:
            assert "\n" not in str(error)


def shards(folder, *states):
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for i, state in enumerate(states):
        write(folder / f"part-{i}.safetensors", state)
        weight_map |= dict.fromkeys(state, f"part-{i}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_a_folder_of_shards_is_one_model(tmp_path):
    first, second = dict(list(STATE.items())[:3]), dict(list(STATE.items())[3:])
    shards(tmp_path, first, second)
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    source = open_source(tmp_path)
    assert set(source.tensors) == set(STATE) and source.config == {"model_type": "x"}


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/etc/passwd", "a/b.bin", "..", 3, [], "a\n"]
)
def test_an_index_cannot_name_files_outside_its_folder(tmp_path, name):
    write(tmp_path / "m.safetensors", STATE)
    index = shards(tmp_path / "inner", STATE)
    index.write_text(json.dumps({"weight_map": {"a.weight": name}}))
    with pytest.raises(DataError, match="no plain name"):
        open_source(tmp_path / "inner")


def test_an_index_and_its_files_must_agree(tmp_path):
    index = shards(tmp_path, STATE)
    record = json.loads(index.read_text())
    index.write_text(
        json.dumps({"weight_map": {**record["weight_map"], "z": "part-0.safetensors"}})
    )
    with pytest.raises(DataError, match=r"do not agree: .part-0.safetensors. lacks z"):
        open_source(tmp_path)
    shards(tmp_path, {"a": STATE["ids"]}, {"b": STATE["ids"], "c": STATE["ids"]})
    first, second = "part-0.safetensors", "part-1.safetensors"
    weight_map = {"d": first, "a": second, "b": second}
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(
        DataError,
        match="'part-0.safetensors' lacks d; 'part-0.safetensors' holds a, not listed "
        "for it; 'part-1.safetensors' lacks a; 'part-1.safetensors' holds c, not",
    ):
        open_source(tmp_path)
    index.write_text(json.dumps({"weight_map": {"z": "gone.safetensors"}}))
    with pytest.raises(DataError, match="gone.safetensors' is missing"):
        open_source(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards(tmp_path, STATE, {"more": STATE["ids"], "ids": STATE["ids"]})
    with pytest.raises(DataError, match="ids is in 'part-0.safetensors' and in"):
        open_source(tmp_path)


def test_an_ambiguous_folder_is_refused(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", STATE)
    with pytest.raises(DataError, match="name one of them"):
        open_source(tmp_path)
    assert open_source(tmp_path / "a.safetensors").tensors
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="has no .safetensors"):
        open_source(empty)
    with pytest.raises(DataError, match="check the path"):
        open_source(tmp_path / "not here")
