"""Saving of training states: format, interruptions, links and permissions."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_state,
    save,
    save_state,
)
from jaxspec.checkpoint.pytrees import read_pytree, write_pytree
from jaxspec.config import TransformerConfig
from jaxspec.errors import CheckpointError
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.embedded import embedded_folder

CONFIG = TransformerConfig(vocab_size=8, layers=1, width=16, heads=2, grid=2, classes=2)
PRIOR = embedded_folder() / "fruits64" / "prior"
TREE = {
    "a": {"b": jnp.arange(12.0).reshape(3, 4), "c": jnp.ones((), jnp.bfloat16)},
    "zero": jnp.zeros((5, 2)),
    "bytes": jnp.arange(-2, 2, dtype=jnp.int8),
    "large": jnp.arange(3 << 20, dtype=jnp.float32).reshape(-1, 1),
}


def test_the_format_is_interchangeable_with_orbax(tmp_path):
    import orbax.checkpoint as ocp

    write_pytree(tmp_path / "jaxspec", TREE)
    shapes = jax.eval_shape(lambda: TREE)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "jaxspec", shapes)
        checkpointer.save(tmp_path / "orbax", TREE)
    chex.assert_trees_all_equal(restored, TREE)
    for name in ("jaxspec", "orbax"):
        loaded = read_pytree(tmp_path / name, shapes)
        chex.assert_trees_all_equal(loaded, TREE)
        chex.assert_trees_all_equal_dtypes(loaded, TREE)


def test_a_missing_chunk_does_not_read_as_zeros(tmp_path):
    """Chunks of zeros are stored too, so that a missing one is an error."""
    import tensorstore as ts

    write_pytree(tmp_path / "x", TREE)
    base = {"driver": "file", "path": f"{tmp_path / 'x'}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    store.write(b"zero/0.0", None).result()
    with pytest.raises(CheckpointError, match="damaged"):
        read_pytree(tmp_path / "x", jax.eval_shape(lambda: TREE))


def test_threads_load_in_parallel_and_leave_stderr_alone(capfd):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load_checkpoint, [PRIOR] * 8))
    chex.assert_trees_all_equal(*(x.params for x in loaded[:2]))
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


LOAD = """
import sys
from jaxspec.checkpoint import load_checkpoint
assert load_checkpoint(sys.argv[1]).kind == "prior"
"""


def test_loading_works_with_stderr_closed():
    command = f'"{sys.executable}" -c "$1" "$2" 2>&-'
    subprocess.run(["sh", "-c", command, "sh", LOAD, PRIOR], check=True)


def test_a_linked_folder_stays_a_link(tmp_path):
    target, link = tmp_path / "disk" / "state", tmp_path / "run" / "state"
    target.parent.mkdir()
    link.parent.mkdir()
    link.symlink_to(target)
    for n in (1, 2, 3):  # the target does not exist at first
        save_state(link, {"x": jnp.full(2, n)}, {"note": str(n)})
        assert link.is_symlink() and (target / "note").read_text() == str(n)
        loaded = load_state(link, {"x": jnp.zeros(2, jnp.int32)})
        assert loaded["x"].tolist() == [n, n]
    assert [p.name for p in target.parent.iterdir()] == ["state"]
    assert [p.name for p in link.parent.iterdir()] == ["state"]


def test_a_folder_keeps_its_permissions(tmp_path):
    before = os.umask(0o077)
    try:
        save_state(tmp_path / "s", {"x": jnp.ones(2)})
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
        (tmp_path / "s").chmod(0o750)
        save_state(tmp_path / "s", {"x": jnp.ones(2)})
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o750
    finally:
        os.umask(before)


def test_a_file_at_the_path_is_not_replaced(tmp_path):
    (tmp_path / "prior").write_text("mine")
    params = Transformer(CONFIG).init(jax.random.key(0))
    with pytest.raises(CheckpointError, match="prior': it is not a folder"):
        save(tmp_path / "prior", Checkpoint("prior", CONFIG, params))
    assert (tmp_path / "prior").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


# Saves again and again, and prints a line before each save.
SAVING = """
import itertools, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may ignore it
import jax.numpy as jnp, numpy as np
from jaxspec.checkpoint import save_state
rng = np.random.default_rng(0)
numbers = jnp.asarray(rng.standard_normal((1 << 20, 4), np.float32))
state = {f"x{i}": numbers for i in range(6)}
for n in itertools.count():
    print(n, flush=True)
    save_state(sys.argv[1], state | {"n": np.int32(n)}, {"n": str(n)})
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_save_leaves_a_complete_state_and_ends_in_seconds(
    tmp_path, number
):
    path = tmp_path / "state"
    like = {f"x{i}": jnp.zeros((1 << 20, 4)) for i in range(6)} | {"n": np.int32(0)}
    command = [sys.executable, "-c", SAVING, path]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as child:
        lines = [child.stdout.readline() for _ in range(2)]
        time.sleep(0.15)  # in the middle of the second save
        child.send_signal(number)
        began = time.perf_counter()
        _, error = child.communicate(timeout=30)
    assert time.perf_counter() - began < 5 and lines == ["0\n", "1\n"]
    (note,) = path.glob("n")
    assert int(load_state(path, like)["n"]) == int(note.read_text())
    if number == signal.SIGINT:  # one traceback, the KeyboardInterrupt
        assert error.count("Traceback") == 1 and error.endswith("KeyboardInterrupt\n")
        assert os.listdir(tmp_path) == ["state"]
    save_state(
        path, {"n": np.int32(7)}
    )  # deletes the temporary files of the killed save
    assert os.listdir(tmp_path) == ["state"]


def test_an_interrupt_while_the_old_state_is_removed_leaves_the_new_one(
    tmp_path, monkeypatch
):
    path, real = tmp_path / "state", shutil.rmtree
    save_state(path, {"x": jnp.ones(2)}, {"note": "old"})
    calls = []

    def interrupted(path, **options):
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, {"x": jnp.ones(2)}, {"note": "new"})
    assert (path / "note").read_text() == "new"
    assert os.listdir(tmp_path) == ["state"]


def test_a_full_disk_raises_a_clear_error_and_leaves_the_old_state(tmp_path):
    path = tmp_path / "state"
    state = {"x": jnp.asarray(np.random.default_rng(0).standard_normal(1 << 16))}
    save_state(path, state)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (10, 1 << 14):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(CheckpointError) as error:
                save_state(path, {"x": state["x"] + 1})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(error.value) == f"cannot write '{path}': File too large"
    chex.assert_trees_all_equal(load_state(path, state), state)
    assert os.listdir(tmp_path) == ["state"]


def test_readers_do_not_undo_a_save(tmp_path):
    """Threads call `recover` in a loop while another one replaces the state."""
    path, ended = tmp_path / "state", threading.Event()
    save_state(path, {"x": jnp.ones(2)}, {"note": "0"})

    def recover_repeatedly():
        from jaxspec.checkpoint import recover

        while not ended.is_set():
            recover(path)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(recover_repeatedly) for _ in range(2)]
        try:
            for n in range(20):
                save_state(path, {"x": jnp.ones(2)}, {"note": str(n)})
                assert (path / "note").read_text() == str(n)
        finally:
            ended.set()
    assert [x.result() for x in readers] == [None, None]
    assert json.loads((path / "note").read_text()) == 19
