"""Images for every line of a file, on any mesh, by one process or by several."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from jaxspec.cli import main
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.prompts import Prompts
from jaxspec.speculative.trees.tree import Tree
from tests.tiny_bundle import save_bundle

LINES = ["0", "2", "", "1", "2", "0", "1", "1", "0", "2", "2", "0"]
CLASSES = tuple(int(line) for line in LINES if line)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def wanted(bundle):
    """Images of plain decoding, each generated alone on one device."""
    loaded = load_bundle(bundle)
    config = GenerationConfig(seed=7, batch_size=4)
    result = generate(loaded, Prompts.from_classes(CLASSES), config, Tree.root())
    return decode_images(loaded, result.tokens)


def command(bundle, folder, *extra, lines=LINES):
    file = folder.with_suffix(".txt")
    file.write_text("\n".join(lines) + "\n")
    given = ["generate", "--checkpoint", str(bundle), "--prompts", str(file)]
    given += ["--out-dir", str(folder), "--seed", "7", "--drafter", "jacobi"]
    return [*given, "--tree", "0,1,00", *extra]


def images(folder):
    files = sorted(folder.glob("*.png"))
    assert [f.name for f in files] == [f"{i:06d}_seed7.png" for i in range(len(files))]
    return np.stack([np.asarray(Image.open(file)) for file in files])


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "devices",
    [[], pytest.param(["--mesh", "2x4"], marks=pytest.mark.slow)],
    ids=str,
)
def test_every_line_gets_the_image_of_its_number_and_seed(
    bundle, wanted, tmp_path, devices, capsys
):
    folder = tmp_path / "out"
    assert main(command(bundle, folder, "--batch", "4", *devices)) == 0
    np.testing.assert_array_equal(images(folder), wanted)
    report = json.loads((folder / "report.json").read_text())
    assert report["images"] == 11 and report["tokens"] == 11 * 16
    assert 0 < report["rows_in_use"] <= 1
    assert "11 images" in capsys.readouterr().out


@pytest.mark.slow
def test_existing_images_are_not_generated_again(bundle, wanted, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(command(bundle, folder)) == 0
    kept = folder / "000003_seed7.png"
    kept.write_bytes(b"mine")
    (folder / "000005_seed7.png").unlink()
    (folder / ".000008_seed7.png.cut").write_bytes(b"a write that was cut off")
    assert main(command(bundle, folder)) == 0
    report = json.loads((folder / "report.json").read_text())
    assert (report["images"], report["there_before"]) == (1, 10)
    assert kept.read_bytes() == b"mine"
    kept.unlink()
    assert main(command(bundle, folder)) == 0
    np.testing.assert_array_equal(images(folder), wanted)
    capsys.readouterr()
    assert main(command(bundle, folder)) == 0
    assert "all 11 images are in" in capsys.readouterr().out
    assert main(command(bundle, folder, "--cfg-scale", "3")) == 2
    assert "generated with another cfg_scale" in capsys.readouterr().err
    lines = [line for line in LINES if line]
    assert main(command(bundle, folder, lines=["1", *lines[1:]])) == 2
    assert (
        "holds '0' as image 0, but this line of the file is '1'"
        in capsys.readouterr().err
    )
    assert main(command(bundle, folder, lines=[*lines, "2"])) == 0
    assert len(images(folder)) == 12
    (folder / "settings.json").write_text("{")
    assert main(command(bundle, folder)) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "extra, lines, message",
    [
        ([], ["0", "9"], "unknown class '9'"),
        ([], [""], "has only empty lines"),
        (["--batch", "3", "--mesh", "2x1"], LINES, "3 sequences do not divide among 2"),
        (["--mesh", "16x1"], LINES, "needs 16 devices"),
        (["--coordinator", "here"], LINES, "not of the form HOST:PORT"),
        (["--classes", "1"], LINES, "--classes does not go with --prompts"),
        (["--processes", "2"], LINES, "several processes need --coordinator"),
    ],
)
def test_impossible_requests_are_a_one_line_error(
    bundle, tmp_path, extra, lines, message, capsys
):
    assert main(command(bundle, tmp_path / "out", *extra, lines=lines)) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("jaxspec:") == 1
    assert not list(tmp_path.glob("out/*.png"))


def start(given, mesh, other=None):
    """Two processes of two devices each; `other` are arguments of the second one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    more = ["--mesh", mesh, "--batch", "4", "--processes", "2"]
    more += ["--coordinator", f"localhost:{port}"]
    code = "import sys; from jaxspec.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *given, *more, "--process", str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, given in enumerate((given, other or given))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", ["2x2", *(pytest.param(m, marks=pytest.mark.slow) for m in ("4x1", "1x4"))]
)
def test_two_processes_share_the_work(bundle, wanted, tmp_path, mesh):
    folder = tmp_path / "out"
    processes = start(command(bundle, folder), mesh)
    out = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], out
    np.testing.assert_array_equal(images(folder), wanted)
    report = json.loads((folder / "report.json").read_text())
    assert (report["processes"], report["images"]) == (2, 11)
    assert ["11 images" in text for text, _ in out] == [True, False]


@pytest.mark.slow
def test_a_process_that_fails_stops_the_others_too(bundle, tmp_path):
    """Process 1 cannot write: its folder is a file."""
    folder = tmp_path / "out"
    given = command(bundle, folder)
    bad = command(bundle, tmp_path / "bad")
    (tmp_path / "bad").write_text("a file")
    processes = start(given, "2x2", other=bad)
    began = time.monotonic()
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert time.monotonic() - began < 100
    assert [process.returncode for process in processes] == [2, 2]
    for err in errors:
        assert "start all processes again" in err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("mesh, victim", [("4x1", 1), ("2x2", 0)])
def test_a_process_that_dies_stops_the_others_and_a_restart_goes_on(
    bundle, tmp_path, mesh, victim
):
    lines = [str(i % 3) for i in range(3000)]
    folder = tmp_path / "out"
    given = command(bundle, folder, lines=lines)
    processes = start(given, mesh)
    while not any(folder.glob("*.png")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, err = processes[1 - victim].communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert processes[1 - victim].returncode == 2
    assert "start all processes again" in err.splitlines()[-1]
    there = len(list(folder.glob("*.png")))
    assert 0 < there < len(lines)
    # Fewer lines, so that the rest takes seconds.
    folder.with_suffix(".txt").write_text("\n".join(lines[: there + 20]))
    processes = start(given, mesh)
    assert [p.wait(timeout=300) for p in processes] == [0, 0]
    assert len(images(folder)) >= there + 20
