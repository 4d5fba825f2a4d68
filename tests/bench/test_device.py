"""The run on an accelerator: parts with limits, none of which ends the others."""

import sys
import tarfile

import pytest

from docs.studies import device
from jaxspec.errors import JaxspecError
from tests.commands import check_command


@pytest.fixture
def commands(monkeypatch):
    """Replaces the parts by short programs; returns their list."""
    found = [
        ("kernels", 60.0, [sys.executable, "-c", "print('one'); print('two')"]),
        ("hardware", 60.0, [sys.executable, "-c", "raise SystemExit('no device')"]),
        ("training", 0.5, [sys.executable, "-c", "import time; time.sleep(60)"]),
    ]
    monkeypatch.setattr(device, "parts", lambda *_: found)
    return found


def test_a_part_that_fails_or_takes_too_long_leaves_the_others(commands, tmp_path):
    result = device.measure_device(folder=str(tmp_path / "new" / "run"), small=True)
    status = {row["part"]: row["status"] for row in result["rows"]}
    assert status == {
        "kernels": "done",
        "hardware": "failed with status 1",
        "training": "ended after 0 s",
    }
    assert [row["end"] for row in result["rows"]] == [["one", "two"], ["no device"], []]
    text = device.device_markdown({"command": "run", **result})
    assert "| hardware | failed with status 1 |" in text and "no device" in text


def test_results_are_packed_without_the_states_of_trainings(commands, tmp_path):
    """Also those of the parts before one that fails."""
    results, file = tmp_path / "run", tmp_path / "run.tar"
    for name in ("checkpoint/drafter/config.json", "drafter/state/arrays"):
        (results / "drafter" / name).parent.mkdir(parents=True)
        (results / "drafter" / name).write_text("x")
    device.measure_device(folder=str(results), pack=str(file), small=True)
    with tarfile.open(file) as archive:
        found = {
            name for name in archive.getnames() if archive.getmember(name).isfile()
        }
    logs = {f"run/{name}.log" for name in ("kernels", "hardware", "training")}
    assert found == logs | {"run/drafter/checkpoint/drafter/config.json"}
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ["missing/run.tar", "run/run.tar"])
def test_a_pack_that_cannot_be_written_is_refused_first(commands, tmp_path, name):
    with pytest.raises(JaxspecError):
        device.measure_device(folder=str(tmp_path / "run"), pack=str(tmp_path / name))
    assert not (tmp_path / "run").exists()


SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved", flush=True)))
print("began", flush=True)
time.sleep(60)
"""
IGNORES = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"


def test_a_part_may_save_before_its_limit(tmp_path, monkeypatch):
    """One that does not end by itself is killed at its limit."""
    monkeypatch.setattr(device, "GRACE", 4.0)
    saving = device._run("a", [sys.executable, "-c", SAVES], 6.0, tmp_path / "a.log")
    assert saving["end"] == ["began", "saved"] and saving["seconds"] < 5
    deaf = device._run("b", [sys.executable, "-c", IGNORES], 2.0, tmp_path / "b.log")
    assert deaf["end"] == [] and 1.9 < deaf["seconds"] < 6


def test_parts_beyond_the_time_limit_are_skipped(commands, tmp_path):
    result = device.measure_device(folder=str(tmp_path), minutes=1e-9, small=True)
    assert {row["status"] for row in result["rows"]} == {"skipped"}


@pytest.mark.parametrize("small", [False, True])
def test_commands_of_the_parts_parse(small, tmp_path):
    for name, limit, command in device.parts(tmp_path, 540.0, None, small):
        assert 0 < limit <= 540
        if name != "kernels":
            check_command(" ".join(command[3:]))
