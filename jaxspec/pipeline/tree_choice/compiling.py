"""Compilation of programs that are timed."""

from collections.abc import Callable
from typing import Any

import jax

Program = Callable[[], Any]
# Compiles a function for its arguments: `compiler(run, *arguments, donate=())`.
Compiler = Callable[..., Any]


def lower(run: Callable, *arguments, donate: tuple[int, ...] = ()) -> Any:
    """Lowers a function in the engine's matmul precision.

    Args:
      run: function.
      *arguments: arrays or their `jax.ShapeDtypeStruct`.
      donate: indices of donated arguments.
    """
    with jax.default_matmul_precision("highest"):
        return jax.jit(run, donate_argnums=donate).lower(*arguments)


def local_compiler(options: dict[str, str] | None = None) -> Compiler:
    """Compiler for the default device, with options of XLA."""

    def compile_program(run, *arguments, donate=()):
        return lower(run, *arguments, donate=donate).compile(
            compiler_options=options or None
        )

    return compile_program
