"""Training on a mesh learns what training on one device learns."""

import json
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxspec.checkpoint import load_checkpoint
from jaxspec.cli import main
from jaxspec.sharding import make_mesh
from jaxspec.train.layout import Layout
from tests.data.packed import write_packed
from tests.train.test_training import DYING, train

STEPS = ["--steps", "50"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_packed(folder / "cifar10_jpeg.npz", 32)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data):
    """A working folder in which a part, and those before it, train on one device."""
    workdir = tmp_path_factory.mktemp("run")
    assert main(train("tokenizer", workdir, data)) == 0
    assert main(train("prior", workdir, data, *STEPS)) == 0
    return workdir


def curve(workdir, part):
    lines = (workdir / part / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return np.array([r["loss"] for r in records if "loss" in r])


@pytest.mark.parametrize(
    "part, mesh",
    [
        pytest.param("prior", ["4x2", "--fsdp"], marks=pytest.mark.slow),
        pytest.param("prior", ["8x1"], marks=pytest.mark.slow),
        pytest.param("drafter", ["8x1"], marks=pytest.mark.slow),
        pytest.param("drafter", ["4x2", "--fsdp"], marks=pytest.mark.slow),
        pytest.param("tokenizer", ["8x1", "--fsdp"], marks=pytest.mark.slow),
    ],
)
def test_losses_on_a_mesh_are_those_on_one_device(part, mesh, alone, data, tmp_path):
    command = train(part, tmp_path, data, *STEPS, "--mesh", *mesh)
    bundle = ["--checkpoint", str(alone / "checkpoint")]
    assert main([*command, *(bundle if part != "tokenizer" else [])]) == 0
    if part != "prior":
        given = bundle if part == "drafter" else []
        alone = tmp_path / "alone"
        assert main(train(part, alone, data, *STEPS, *given)) == 0
    mine, theirs = curve(tmp_path, part), curve(alone, part)
    assert len(mine) == 50 and theirs[-1] < theirs[0]
    np.testing.assert_allclose(mine, theirs, rtol=2e-3)
    np.testing.assert_allclose(mine[:5], theirs[:5], rtol=1e-5)
    metadata = load_checkpoint(tmp_path / "checkpoint" / part).metadata
    assert metadata["command"].endswith("--mesh " + " ".join(mesh))


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(alone, data, tmp_path):
    """Half of it on one device, the other half on eight."""
    half = tmp_path / "run"
    shutil.copytree(alone, half)
    shutil.rmtree(half / "prior")
    command = train("prior", half, data, *STEPS)
    child = subprocess.run([sys.executable, "-c", DYING, *command], capture_output=True)
    assert child.returncode == -signal.SIGKILL
    assert 0 < json.loads((half / "prior/state/progress.json").read_text())["step"] < 50
    assert main([*command, "--mesh", "4x2", "--fsdp"]) == 0
    np.testing.assert_allclose(curve(half, "prior"), curve(alone, "prior"), rtol=2e-3)


def test_each_device_keeps_its_part_of_the_state():
    like = {"params": {"ffn": {"gate_up": {"kernel": np.zeros((16, 2, 32))}}}}
    whole = Layout(make_mesh(4, 2)).place(like)
    divided = Layout(make_mesh(4, 2), fsdp=True).place(like)
    sizes = [
        x.addressable_shards[0].data.size for x in jax.tree.leaves([whole, divided])
    ]
    assert sizes == [512, 128]


def test_a_mesh_that_does_not_suit_is_told(data, tmp_path, capsys):
    command = train("tokenizer", tmp_path, data, *STEPS)
    assert main([*command, "--mesh", "3x1"]) == 2
    assert "a batch of 8 does not divide among 3 devices" in capsys.readouterr().err
    assert main([*command, "--fsdp"]) == 2
    assert "--fsdp divides along a mesh" in capsys.readouterr().err
    assert main([*command, "--mesh", "3"]) == 2
