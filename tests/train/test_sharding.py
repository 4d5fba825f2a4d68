"""Training on a mesh gives the losses of training on one device."""

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
from jaxspec.train.sharding import TrainSharding
from tests.data.packed import write_packed
from tests.train.commands import DYING, train

STEPS = ["--steps", "50"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_packed(folder / "cifar10_jpeg.npz", 32)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory, data):
    """Working folder of a tokenizer and a prior that were trained on one device."""
    workdir = tmp_path_factory.mktemp("run")
    assert main(train("tokenizer", workdir, data)) == 0
    assert main(train("prior", workdir, data, *STEPS)) == 0
    return workdir


def losses_of(workdir, part):
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
def test_losses_on_a_mesh_equal_those_on_one_device(part, mesh, single, data, tmp_path):
    command = train(part, tmp_path, data, *STEPS, "--mesh", *mesh)
    bundle = ["--checkpoint", str(single / "checkpoint")]
    assert main([*command, *(bundle if part != "tokenizer" else [])]) == 0
    if part != "prior":
        earlier = bundle if part == "drafter" else []
        single = tmp_path / "single"
        assert main(train(part, single, data, *STEPS, *earlier)) == 0
    sharded, expected = losses_of(tmp_path, part), losses_of(single, part)
    assert len(sharded) == 50 and expected[-1] < expected[0]
    np.testing.assert_allclose(sharded, expected, rtol=2e-3)
    np.testing.assert_allclose(sharded[:5], expected[:5], rtol=1e-5)
    metadata = load_checkpoint(tmp_path / "checkpoint" / part).metadata
    assert metadata["command"].endswith("--mesh " + " ".join(mesh))


@pytest.mark.slow
def test_a_run_resumes_on_another_mesh(single, data, tmp_path):
    """The first steps run on one device, the others on eight."""
    half = tmp_path / "run"
    shutil.copytree(single, half)
    shutil.rmtree(half / "prior")
    command = train("prior", half, data, *STEPS)
    child = subprocess.run([sys.executable, "-c", DYING, *command], capture_output=True)
    assert child.returncode == -signal.SIGKILL
    assert 0 < json.loads((half / "prior/state/progress.json").read_text())["step"] < 50
    assert main([*command, "--mesh", "4x2", "--fsdp"]) == 0
    np.testing.assert_allclose(
        losses_of(half, "prior"), losses_of(single, "prior"), rtol=2e-3
    )


def test_each_device_stores_its_part_of_the_state():
    like = {"params": {"ffn": {"gate_up": {"kernel": np.zeros((16, 2, 32))}}}}
    whole = TrainSharding(make_mesh(4, 2)).device_put(like)
    divided = TrainSharding(make_mesh(4, 2), fsdp=True).device_put(like)
    sizes = [
        x.addressable_shards[0].data.size for x in jax.tree.leaves([whole, divided])
    ]
    assert sizes == [512, 128]


def test_an_unsuitable_mesh_is_refused(data, tmp_path, capsys):
    command = train("tokenizer", tmp_path, data, *STEPS)
    assert main([*command, "--mesh", "3x1"]) == 2
    assert "a batch of 8 does not divide among 3 devices" in capsys.readouterr().err
    assert main([*command, "--fsdp"]) == 2
    assert "--fsdp needs a mesh" in capsys.readouterr().err
    assert main([*command, "--mesh", "3"]) == 2
