"""Errors that the user can fix: one line on stderr and status 2."""

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxspec
from jaxspec.cli import main
from jaxspec.cli.failures import error_message

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nIn a buffer"


def command(*arguments):
    return [sys.executable, "-m", "jaxspec", *map(str, arguments)]


def piped(**options):
    pipe = subprocess.PIPE
    return {"stdout": pipe, "stderr": pipe, "text": True, **options}


# Python buffers stdout until the end, or writes it at once.
BUFFERS = pytest.mark.parametrize("unbuffered", ["", "1"])


def one_line(error):
    assert error.startswith("jaxspec: ") and error.count("\n") == 1, error
    return error


def test_the_package_is_a_command():
    process = subprocess.run(command("--version"), **piped())
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("0.")


@pytest.mark.variants(1)
@pytest.mark.parametrize("platform", ["tpu", "cuda", "oak"])
def test_a_missing_device_names_the_variable(platform, tmp_path):
    # JAX_PLATFORMS cannot hide a device that the machine has.
    if platform in {device.platform for device in jax.devices()}:
        pytest.skip("the machine has this device")
    arguments = command("generate", "--num", "1", "--out", "s.png")
    root = str(Path(jaxspec.__file__).parents[1])
    env = os.environ | {"JAX_PLATFORMS": platform, "PYTHONPATH": root}
    process = subprocess.run(arguments, cwd=tmp_path, env=env, **piped())
    assert (process.returncode, process.stdout) == (2, "")
    assert f"no device for JAX_PLATFORMS={platform}: unset it" in one_line(
        process.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (jax.errors.JaxRuntimeError(OUT_OF_MEMORY), "the device's memory is full"),
        (MemoryError(), "this machine's memory is full"),
    ],
)
def test_out_of_memory_suggests_a_smaller_batch(
    error, words, tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("jaxspec.pipeline.generation.generate", fail)
    out = tmp_path / "s.png"
    assert main(["generate", "--num", "1", "--out", str(out)]) == 2
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("jaxspec: ")
    ]
    assert words in line and "a smaller --batch" in line
    if not isinstance(error, MemoryError):
        assert "`jaxspec info --plan`" in line and "allocating 99 bytes" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"command": "eval", "batch": 8}, "give a smaller --batch"),
        ({"command": "train"}, "give a smaller batch in the preset, or divide"),
        ({"command": "convert"}, "use a machine with more"),
    ],
)
def test_memory_advice_depends_on_the_command(options, words):
    arguments = argparse.Namespace(**options)
    for error in (MemoryError(), jax.errors.JaxRuntimeError(OUT_OF_MEMORY)):
        assert f"memory is full: {words}" in str(error_message(error, arguments))


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Shared memory size limit"),
        RuntimeError("a bug"),
        AssertionError(),
    ],
)
def test_bugs_keep_their_traceback(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("jaxspec.pipeline.bundle.load_bundle", fail)
    with pytest.raises(type(error)):
        main(["generate", "--num", "1"])


@BUFFERS
def test_a_closed_pipe_is_one_line(unbuffered, monkeypatch):
    """As with `| head`; Python prints nothing at exit."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(command("info"), **piped(stdout=writing))
    os.close(writing)
    assert process.returncode == 2
    assert one_line(process.stderr) == "jaxspec: cannot write to stdout: Broken pipe\n"


@BUFFERS
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_full_disk_behind_stdout_is_one_line(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "wb") as full:
        process = subprocess.run(command("info", "--plan"), **piped(stdout=full))
    assert process.returncode == 2 and "No space left" in one_line(process.stderr)


@pytest.mark.variants(1)
@pytest.mark.parametrize("closed", ["1", "2"])
def test_closed_standard_streams_are_ignored(closed):
    arguments = command("info", "--plan")
    line = " ".join(f"'{word}'" for word in arguments) + f" {closed}>&-"
    process = subprocess.run(["sh", "-c", line], **piped())
    assert (process.returncode, process.stderr) == (0, "")
    assert bool(process.stdout) == (closed == "2")


def test_a_report_on_stdout_moves_the_table_to_stderr(tmp_path, monkeypatch):
    """Otherwise the JSON of the report could not be read from a pipe."""
    from jaxspec.cli.options import table_stream

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    (tmp_path / "link").symlink_to("/dev/stdout")
    for report in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", tmp_path / "link"):
        assert table_stream("s.png", report) is sys.stderr
    for report in (None, "r.json", "/dev/stderr", "/dev/fd/11", tmp_path / "r"):
        assert table_stream("s.png", report) is sys.stdout
