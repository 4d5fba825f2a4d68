"""What is not the program's fault is one line on stderr and status 2."""

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


# What is printed is held back until the end, or written at once.
BUFFERS = pytest.mark.parametrize("unbuffered", ["", "1"])


def one_line(error):
    assert error.startswith("jaxspec: ") and error.count("\n") == 1, error
    return error


def test_the_package_is_a_command():
    found = subprocess.run(command("--version"), **piped())
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("0.")


@pytest.mark.parametrize("platform", ["tpu", "cuda", "oak"])
def test_a_missing_device_names_the_variable(platform, tmp_path):
    # Devices that are there are not hidden from jax by a variable of ours.
    if platform in {device.platform for device in jax.devices()}:
        pytest.skip("it is there")
    asked = command("generate", "--num", "1", "--out", "s.png")
    here = str(Path(jaxspec.__file__).parents[1])
    variables = os.environ | {"JAX_PLATFORMS": platform, "PYTHONPATH": here}
    found = subprocess.run(asked, cwd=tmp_path, env=variables, **piped())
    assert (found.returncode, found.stdout) == (2, "")
    assert f"no device for JAX_PLATFORMS={platform}: unset it" in one_line(found.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (jax.errors.JaxRuntimeError(OUT_OF_MEMORY), "the device's memory is full"),
        (MemoryError(), "this machine's memory is full"),
    ],
)
def test_memory_that_is_full_names_a_smaller_batch(
    error, words, tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("jaxspec.pipeline.draw", fail)
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
    ("given", "words"),
    [
        ({"command": "eval", "batch": 8}, "give a smaller --batch"),
        ({"command": "train"}, "give a smaller batch in the preset, or divide"),
        ({"command": "convert"}, "use a machine with more"),
    ],
)
def test_what_takes_less_memory_depends_on_the_command(given, words):
    arguments = argparse.Namespace(**given)
    for error in (MemoryError(), jax.errors.JaxRuntimeError(OUT_OF_MEMORY)):
        assert f"memory is full: {words}" in str(error_message(error, arguments))


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Shared memory size limit"),
        RuntimeError("a fault of ours"),
        AssertionError(),
    ],
)
def test_faults_of_the_program_keep_their_traceback(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("jaxspec.bundle.load_bundle", fail)
    with pytest.raises(type(error)):
        main(["generate", "--num", "1"])


@BUFFERS
def test_a_reader_that_has_gone_is_one_line(unbuffered, monkeypatch):
    """As behind `| head`; nor does Python complain at its end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reading, writing = os.pipe()
    os.close(reading)
    found = subprocess.run(command("info"), **piped(stdout=writing))
    os.close(writing)
    assert found.returncode == 2
    assert one_line(found.stderr) == "jaxspec: cannot write to stdout: Broken pipe\n"


@BUFFERS
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_behind_stdout_is_one_line(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "wb") as full:
        found = subprocess.run(command("info", "--plan"), **piped(stdout=full))
    assert found.returncode == 2 and "No space left" in one_line(found.stderr)


@pytest.mark.parametrize("closed", ["1", "2"])
def test_streams_that_are_closed_are_done_without(closed, tmp_path):
    asked = command("info", "--plan")
    line = " ".join(f"'{word}'" for word in asked) + f" {closed}>&-"
    found = subprocess.run(["sh", "-c", line], **piped())
    assert (found.returncode, found.stderr) == (0, "")
    assert bool(found.stdout) == (closed == "2")


def test_with_stdout_as_a_file_nothing_else_is_on_it(tmp_path, monkeypatch):
    """The table moves to stderr, so that a report can be read from a pipe."""
    from jaxspec.cli.options import table_stream

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    (tmp_path / "link").symlink_to("/dev/stdout")
    for taken in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", tmp_path / "link"):
        assert table_stream("s.png", taken) is sys.stderr
    for other in (None, "r.json", "/dev/stderr", "/dev/fd/11", tmp_path / "r"):
        assert table_stream("s.png", other) is sys.stdout
