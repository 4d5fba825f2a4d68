"""Files: what is there is replaced whole, in its place, with its permissions."""

import errno
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import jaxspec
from jaxspec.errors import DataError
from jaxspec.fresh import fresh_file, fresh_folder
from jaxspec.writing import check_writable, whole_file, write_file

ROOT = Path(jaxspec.__file__).parent
# Their files are parts of a folder that is replaced whole, or a log that grows.
OWN = {"writing.py", "fresh.py", "train/loop.py", "cli/streams.py"}
WRITES = re.compile(r"write_text|write_bytes|os\.replace|open\([^)]*, \"[wax]")


def mode(file):
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_all_files_are_written_by_one_function():
    for file in ROOT.rglob("*.py"):
        name = file.relative_to(ROOT).as_posix()
        if name not in OWN and not name.startswith("checkpoint/"):
            assert not WRITES.search(file.read_text()), name


def test_a_new_file_gets_what_the_umask_leaves(tmp_path, umask):
    write_file(tmp_path / "a", b"x")
    assert mode(tmp_path / "a") == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o666])
def test_a_file_keeps_its_permissions(tmp_path, umask, permissions):
    file = tmp_path / "a"
    file.write_bytes(b"a long text")
    file.chmod(permissions)
    write_file(file, b"x")
    assert (file.read_bytes(), mode(file)) == (b"x", permissions)


def test_a_file_is_not_readable_by_more_while_it_is_written(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"secret")
    file.chmod(0o600)
    with whole_file(file) as out:
        out.write(b"new")
        assert {mode(x) for x in tmp_path.iterdir()} == {0o600}


def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a", tmp_path / "link"
    link.symlink_to("there/a")
    for text in (b"one", b"two"):  # first it leads to nothing
        write_file(link, text)
        assert link.is_symlink() and target.read_bytes() == text
    other = tmp_path / "other"
    os.link(target, other)
    write_file(other, b"3")
    assert target.read_bytes() == b"3" and os.path.samefile(target, other)


def test_pipes_are_written_into(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    found = []
    reader = threading.Thread(target=lambda: found.append(fifo.read_bytes()))
    reader.start()
    check_writable(fifo)
    write_file(fifo, b"through")
    reader.join()
    assert found == [b"through"] and stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize("linked", [False, True])
def test_standard_output_is_written_behind_what_was_printed(tmp_path, linked):
    """Also where it is a file, which is neither cut nor replaced."""
    name = "/dev/stdout"
    if linked:
        name = tmp_path / "link"
        name.symlink_to("/dev/stdout")
    code = "import sys; from jaxspec.writing import write_file; print('before');"
    code += "write_file(sys.argv[1], b'data\\n'); print('after')"
    with open(tmp_path / "log", "wb") as log:
        subprocess.run([sys.executable, "-c", code, name], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "before\ndata\nafter\n"


def _socket(place):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x.mkdir(), "it is a folder"),
        (_socket, "it is a socket"),
        (lambda x: x.symlink_to(x.name), "symbolic link"),
        (lambda x: x.symlink_to("nowhere/a"), "there is no folder"),
    ],
    ids=["folder", "socket", "circle", "nowhere"],
)
@pytest.mark.parametrize("write", [check_writable, lambda x: write_file(x, b"")])
def test_what_no_file_can_replace_is_refused(make, words, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    place = tmp_path / "x"
    make(place if make is not _socket else place.relative_to(tmp_path))
    before = os.lstat(place)
    with pytest.raises(DataError, match=f"cannot write '.*x': .*{words}") as error:
        write(place)
    assert "\n" not in str(error.value)
    assert os.path.samestat(before, os.lstat(place)) and os.listdir() == ["x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_write_protected_files_are_refused(tmp_path):
    file = tmp_path / "a"
    file.touch(0o444)
    with pytest.raises(DataError, match="write-protected"):
        check_writable(file)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), ValueError])
def test_a_failed_write_leaves_what_was_there(tmp_path, error):
    file = tmp_path / "a"
    file.write_bytes(b"old")
    wanted = DataError if isinstance(error, OSError) else ValueError
    with pytest.raises(wanted), whole_file(file) as out:
        out.write(b"half")
        raise error
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from jaxspec import fresh
with getattr(fresh, sys.argv[2])(Path(sys.argv[1])) as made:
    print(flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("make", [fresh_file, fresh_folder])
def test_what_killed_writers_left_is_cleared_and_a_living_ones_is_not(tmp_path, make):
    place = tmp_path / "a"
    command = [sys.executable, "-c", KILLED, place, make.__name__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        other.stdout.readline()
        (theirs,) = tmp_path.iterdir()
        with make(place):
            assert theirs.exists() and len(list(tmp_path.iterdir())) == 2
        assert list(tmp_path.iterdir()) == [theirs]
        other.communicate()
    assert other.returncode == -signal.SIGKILL and theirs.exists()
    with make(place):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
