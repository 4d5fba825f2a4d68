"""The private folder of compiled programs, and what replaces it."""

import argparse
import os
import stat

import jax
import pytest

from jaxspec.cli.compile_cache import private_folder, use_compile_cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home without a cache folder or a variable of JAX."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def used(choice=None):
    """Folder of JAX's cache after a command with a value of the option."""
    use_compile_cache(argparse.Namespace(compile_cache=choice))
    return jax.config.jax_compilation_cache_dir


def test_by_default_it_is_a_private_folder_of_the_user(home, monkeypatch):
    before = os.umask(0)
    folder = private_folder()
    os.umask(before)
    assert folder == home / ".cache" / "jaxspec" / "compiled"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert used() == str(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    assert private_folder() == home / "elsewhere" / "jaxspec" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # not valid
    assert private_folder() == folder


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o700])
@pytest.mark.parametrize("part", ["jaxspec", "jaxspec/compiled"])
def test_a_folder_that_others_can_write_is_not_used(home, mode, part, capsys):
    folder = private_folder()
    (home / ".cache" / part).chmod(mode)
    found, reason = private_folder(), capsys.readouterr().err
    if mode == 0o700:
        assert (found, reason) == (folder, "")
    else:
        assert found is None and reason.count("\n") == 1
        assert f"others can write '{home}" in reason


def test_a_folder_of_another_user_is_not_used(home, monkeypatch, capsys):
    private_folder()
    monkeypatch.setattr(os, "getuid", lambda: home.stat().st_uid + 1)
    assert private_folder() is None
    assert "belongs to another user" in capsys.readouterr().err


def test_a_home_without_room_for_it_means_no_cache(home, monkeypatch, capsys):
    before = jax.config.jax_compilation_cache_dir
    (home / ".cache").write_text("a file")
    assert private_folder() is None and used() == before
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no home is known
    assert private_folder() is None
    assert capsys.readouterr().err == ""


def test_the_option_and_the_variable_replace_it(home, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")  # JAX read it at its import
    assert used() == before
    assert used(str(home / "named")) == str(home / "named")
    assert used("none") is None
    assert not (home / ".cache").exists()
