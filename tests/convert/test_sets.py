"""Selection among several sets of weights in one file."""

from dataclasses import replace

import numpy as np
import pytest

from jaxspec.checkpoint import load_checkpoint
from jaxspec.cli import main
from jaxspec.convert.conversion import convert, prepare
from jaxspec.convert.families import FAMILIES
from jaxspec.convert.reading.open import open_source
from jaxspec.convert.reading.sets import AVERAGES
from jaxspec.convert.recognition import recognize
from jaxspec.errors import DataError
from tests.convert import models, torch_files

SETTINGS = {"heads": 4, "grid": 4}


@pytest.fixture
def trained(tmp_path):
    """Returns the weights of a model, and their moving average."""
    state = models.released(tmp_path / "model")
    return state, {name: x + np.float32(1) for name, x in state.items()}


def norm(folder):
    return np.asarray(load_checkpoint(folder).params["norm"]["scale"])


@pytest.mark.parametrize("ema", AVERAGES)
def test_the_model_is_taken_or_its_average_where_that_is_asked_for(
    tmp_path, trained, ema
):
    model, average = trained
    steps = torch_files.number(3)
    file = tmp_path / "m.pt"
    torch_files.save(file, {ema: average, "model": model, "steps": steps})
    for choice, state, name in ((None, model, "model"), (ema, average, ema)):
        [written] = convert(file, tmp_path / "b", given=SETTINGS, weights=choice)
        np.testing.assert_array_equal(norm(written.folder), state["norm.weight"])
        assert load_checkpoint(written.folder).metadata["weights"] == name
        other = "model" if choice else ema
        assert written.remarks[0] == f"weights: {name}; --weights can choose {other}"
        assert written.remarks[1] == "left out: [steps]"


def test_prefixes_are_those_of_the_selected_weights(tmp_path, trained):
    model, average = trained
    average = {f"module.{key}": x for key, x in average.items()}
    torch_files.save(tmp_path / "m.pt", {"model": model, "ema": average})
    assert open_source(tmp_path / "m.pt").prefixes == ()
    source = open_source(tmp_path / "m.pt", weights="ema")
    assert source.prefixes == ("module.",) and source.tensors.keys() == model.keys()


def test_the_only_set_is_selected_under_any_name(tmp_path, trained):
    file = tmp_path / "m.pt"
    torch_files.save(file, {"ema": trained[1]})
    [written] = convert(file, tmp_path / "b", given=SETTINGS)
    np.testing.assert_array_equal(norm(written.folder), trained[1]["norm.weight"])
    assert written.remarks == ("weights: ema",)


def test_an_ambiguous_choice_is_refused(tmp_path, trained, capsys):
    file = tmp_path / "m.pt"
    torch_files.save(file, {"ema": trained[1], "teacher": trained[0]})
    with pytest.raises(DataError, match="ema, teacher; choose one with --weights"):
        prepare(file, tmp_path / "b", given=SETTINGS)
    with pytest.raises(DataError, match="no weights named 'emma'; it has ema, teacher"):
        prepare(file, tmp_path / "b", given=SETTINGS, weights="emma")
    command = ["convert", str(file), str(tmp_path / "b"), "--weights", "teacher"]
    assert main([*command, "--set", "heads=4", "--set", "grid=4"]) == 0
    assert "weights: teacher; --weights can choose ema" in capsys.readouterr().out


def test_the_family_determines_the_order_of_preference(tmp_path, trained, monkeypatch):
    """MAR's official loader, for instance, prefers "model_ema"."""
    file = tmp_path / "m.pt"
    torch_files.save(file, {"model": trained[0], "model_ema": trained[1]})
    like_mar = replace(FAMILIES["llamagen"], weights=("model_ema", "model"))
    monkeypatch.setitem(FAMILIES, "llamagen", like_mar)
    [(_, source)] = recognize(open_source(file))
    assert source.weights == "model_ema"
    [(_, source)] = recognize(open_source(file), weights="model")
    assert source.weights == "model"


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_averages_beside_the_weights_have_a_prefix(tmp_path, trained, flat, name):
    """Lightning removes dots from the names, and omits buffers."""
    model, average = trained
    model = {**model, "causal_mask": np.ones((2, 2), np.float32)}
    shadows = {
        "model_ema." + (key.replace(".", "") if flat else key): x
        for key, x in average.items()
    }
    shadows["model_ema.decay"] = np.asarray(0.99, np.float32)
    torch_files.write(tmp_path / name, {**model, **shadows})
    source = open_source(tmp_path / name, weights="model_ema")
    for key, x in average.items():
        np.testing.assert_array_equal(source.tensors[key].read(), x)
    assert source.sets[""].keys() == model.keys()
    assert source.tensors.keys() - model.keys() == set()
    assert source.left_out == ("decay",)


def test_counters_of_averages_are_left_out(tmp_path, trained):
    """PyTorch's `AveragedModel` saves one."""
    averaged = {f"module.{key}": x for key, x in trained[1].items()}
    averaged["n_averaged"] = np.asarray(7)
    torch_files.save(tmp_path / "m.pt", averaged)
    source = open_source(tmp_path / "m.pt")
    assert source.tensors.keys() == trained[1].keys()
    assert (source.left_out, source.prefixes) == (("n_averaged",), ("module.",))
