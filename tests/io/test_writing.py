"""Atomic writing of files: links, permissions, pipes and failures."""

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
from jaxspec.io.fresh import fresh_file, fresh_folder
from jaxspec.io.writing import check_writable, whole_file, write_file

ROOT = Path(jaxspec.__file__).parent
# These write into a folder that is replaced as a whole, or append to a log.
EXEMPT = {"io/writing.py", "io/fresh.py", "train/loop.py", "cli/streams.py"}
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
        if name not in EXEMPT and not name.startswith("checkpoint/"):
            assert not WRITES.search(file.read_text()), name


def test_permissions_of_a_new_file_follow_the_umask(tmp_path, umask):
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


def test_the_temporary_file_is_as_private_as_the_old_one(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"secret")
    file.chmod(0o600)
    with whole_file(file) as out:
        out.write(b"new")
        assert {mode(x) for x in tmp_path.iterdir()} == {0o600}


def test_links_are_kept_and_their_targets_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "a", tmp_path / "link"
    link.symlink_to("folder/a")
    for text in (b"one", b"two"):  # the target does not exist at first
        write_file(link, text)
        assert link.is_symlink() and target.read_bytes() == text
    other = tmp_path / "other"
    os.link(target, other)
    write_file(other, b"3")
    assert target.read_bytes() == b"3" and os.path.samefile(target, other)


def test_pipes_are_written_into(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    check_writable(fifo)
    write_file(fifo, b"through")
    reader.join()
    assert received == [b"through"] and stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize("linked", [False, True])
def test_data_on_stdout_keeps_its_order_with_printed_text(tmp_path, linked):
    """A stdout that is a file is neither truncated nor replaced."""
    name = "/dev/stdout"
    if linked:
        name = tmp_path / "link"
        name.symlink_to("/dev/stdout")
    code = "import sys; from jaxspec.io.writing import write_file; print('before');"
    code += "write_file(sys.argv[1], b'data\\n'); print('after')"
    with open(tmp_path / "log", "wb") as log:
        subprocess.run([sys.executable, "-c", code, name], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "before\ndata\nafter\n"


def _make_socket(path):
    with socket.socket(socket.AF_UNIX) as unix_socket:
        unix_socket.bind(str(path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x.mkdir(), "it is a folder"),
        (_make_socket, "it is a socket"),
        (lambda x: x.symlink_to(x.name), "symbolic link"),
        (lambda x: x.symlink_to("nowhere/a"), "there is no folder"),
    ],
    ids=["folder", "socket", "link loop", "dangling link"],
)
@pytest.mark.parametrize("write", [check_writable, lambda x: write_file(x, b"")])
def test_folders_sockets_and_broken_links_are_refused(
    make, words, write, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # paths of sockets must be short
    path = tmp_path / "x"
    make(path if make is not _make_socket else path.relative_to(tmp_path))
    before = os.lstat(path)
    with pytest.raises(DataError, match=f"cannot write '.*x': .*{words}") as error:
        write(path)
    assert "\n" not in str(error.value)
    assert os.path.samestat(before, os.lstat(path)) and os.listdir() == ["x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_write_protected_files_are_refused(tmp_path):
    file = tmp_path / "a"
    file.touch(0o444)
    with pytest.raises(DataError, match="write-protected"):
        check_writable(file)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), ValueError])
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    file = tmp_path / "a"
    file.write_bytes(b"old")
    expected = DataError if isinstance(error, OSError) else ValueError
    with pytest.raises(expected), whole_file(file) as out:
        out.write(b"half")
        raise error
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from jaxspec.io import fresh
with getattr(fresh, sys.argv[2])(Path(sys.argv[1])) as made:
    print(flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("make", [fresh_file, fresh_folder])
def test_temporary_files_of_killed_writers_are_deleted_and_of_others_kept(
    tmp_path, make
):
    path = tmp_path / "a"
    command = [sys.executable, "-c", KILLED, path, make.__name__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        other.stdout.readline()
        (other_file,) = tmp_path.iterdir()
        with make(path):
            assert other_file.exists() and len(list(tmp_path.iterdir())) == 2
        assert list(tmp_path.iterdir()) == [other_file]
        other.communicate()
    assert other.returncode == -signal.SIGKILL and other_file.exists()
    with make(path):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
