"""Option `--compile-cache`: a private folder of compiled programs, by default.

Entries hold machine code, so a default folder that others can write is not used.
"""

import argparse
import os
import stat
import sys
from pathlib import Path

from jaxspec.cli.help import rare

# JAX reads it, so a folder that the user set there stays in use.
VARIABLE = "JAX_COMPILATION_CACHE_DIR"
OFF = "none"


def add_compile_cache(parser) -> None:
    """Adds `--compile-cache` to a parser or a group; `main` enables what it names."""
    parser.add_argument(
        "--compile-cache",
        metavar="DIR",
        help=rare(
            "keep compiled programs there, so that later starts with the same settings "
            f"compile nothing; {OFF} keeps none. Anyone who can write there can run "
            f"code as you (default: {VARIABLE} if set, else jaxspec/compiled in your "
            "cache folder)"
        ),
    )


def use_compile_cache(arguments: argparse.Namespace) -> None:
    """Enables the compilation cache of a command that has the option.

    Without a value, `JAX_COMPILATION_CACHE_DIR` is left to JAX; if that is not set
    either, the user's private folder is used, and none if it cannot be written.

    Raises:
      OSError: the folder that the option names cannot be written.
    """
    if not hasattr(arguments, "compile_cache"):
        return
    choice = arguments.compile_cache
    if choice == OFF:
        import jax

        jax.config.update("jax_compilation_cache_dir", None)
        return
    if choice is None and VARIABLE in os.environ:
        return
    from jaxspec.sharding.device import enable_compile_cache

    if choice is not None:
        enable_compile_cache(choice)
        return
    folder = private_folder()
    if folder is not None:
        try:
            enable_compile_cache(str(folder))
        except OSError:  # such as a full disk: programs are compiled again
            return


def private_folder() -> Path | None:
    """Creates the folder of compiled programs below the user's cache folder.

    Returns:
      The folder; None if it cannot be made, or, with one line on stderr, if another
      user owns it or may write it.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
        folder = root / "jaxspec" / "compiled"
        folder.parent.mkdir(0o700, parents=True, exist_ok=True)
        folder.mkdir(0o700, exist_ok=True)
        reason = next(filter(None, map(_reason, (folder.parent, folder))), None)
    except (OSError, RuntimeError):  # a home that is read-only, or that is unknown
        return None
    if reason:
        print(f"compiled programs are not kept: {reason}", file=sys.stderr)
        return None
    return folder


def _reason(folder: Path) -> str | None:
    """Reason not to run programs from a folder, or None."""
    if not hasattr(os, "getuid"):
        return None
    status = folder.stat()
    if status.st_uid != os.getuid():
        return f"'{folder}' belongs to another user; choose a --compile-cache"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write '{folder}'; run chmod 700 '{folder}'"
    return None
