"""Files that show how a training goes."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from jaxspec.train.events import TrainingEvent
from jaxspec.train.monitor.curves import CURVES, write_curves
from jaxspec.train.monitor.entropy import EntropyWarning
from jaxspec.train.monitor.tensorboard import tensorboard_observer


def event(workdir, metrics, params=None, step=10):
    return TrainingEvent("prior", workdir, step, 20, 1.0, metrics, params)


def test_a_target_that_memorizes_is_named_once(tmp_path, capsys):
    observer = EntropyWarning()
    observer(event(tmp_path, {"entropy": 3.9, "heldout_loss": 4.0}))
    observer(event(tmp_path, {"loss": 0.1}))
    assert not capsys.readouterr().err
    observer(event(tmp_path, {"entropy": 1.1, "heldout_loss": 4.0}))
    observer(event(tmp_path, {"entropy": 1.0, "heldout_loss": 4.1}))
    assert capsys.readouterr().err.count("memorizes its training data") == 1


def test_curves_are_drawn_at_evaluations(tmp_path):
    """Of all metrics in the log; more metrics need more panels."""
    sizes = []
    for names in (["loss"], ["loss", "heldout_loss", "tokens_per_call"]):
        lines = [{"step": i, **dict.fromkeys(names, 1.0 / i)} for i in range(1, 9)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text)
        write_curves(event(tmp_path, {"loss": 1.0}))
        assert (tmp_path / CURVES).exists() == bool(sizes)
        write_curves(event(tmp_path, {"loss": 1.0}, params={"w": np.ones(1)}))
        sizes.append(Image.open(tmp_path / CURVES).size)
    assert sizes[0][0] < sizes[1][0]


@pytest.fixture
def written(monkeypatch):
    """Values written to TensorBoard, whose package is replaced."""
    values, module = [], ModuleType("tensorboard.summary")

    class Writer:
        def __init__(self, output):
            self.output = output

        def add_scalar(self, tag, data, step):
            values.append((self.output, tag, data, step))

        def flush(self):
            values.append("flush")

    module.Writer, module.DirectoryOutput = Writer, str
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "tensorboard.summary", module)
    return values


def test_metrics_go_to_tensorboard_where_it_is_installed(
    written, tmp_path, monkeypatch
):
    observer = tensorboard_observer()
    observer(event(tmp_path, {"step": 10, "loss": 0.5}, params={}))
    folder = str(tmp_path / "tensorboard")
    assert written == [(folder, "prior/loss", 0.5, 10), "flush"]
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    assert tensorboard_observer() is None
