"""Interleaved timing of programs."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import jax

from jaxspec.pipeline.timing import Timing


def lazy(make: Callable[..., Callable[[], Any]], *args: Any) -> Callable[[], Any]:
    """Defers building a program to its first call.

    Args:
      make: Function that builds the program.
      *args: Arguments of `make`.
    """
    programs: list[Callable[[], Any]] = []

    def call():
        if not programs:
            programs.append(make(*args))
        return programs[0]()

    return call


@contextmanager
def collect_errors(errors: dict[Any, str], name: Any) -> Iterator[None]:
    """Records an exception under `errors[name]` instead of raising it."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        errors[name] = f"{type(error).__name__}: {lines[0][:200]}"


def time_interleaved(
    calls: Mapping[Any, Callable[[], Any]],
    repeats: int,
    progress: Callable[[], object] = lambda: None,
    errors: dict[Any, str] | None = None,
    *,
    warm_up: bool = True,
) -> dict[Any, Timing]:
    """Times every call `repeats` times, in round-robin order.

    Interleaving exposes all calls to the same load of the machine. Returned arrays are
    waited for.

    Args:
      calls: Programs by name.
      repeats: Number of timed calls of each.
      progress: Callback after each call.
      errors: Messages of calls that fail in the warm-up, filled by this function; such
        calls are not timed. None raises their exceptions.
      warm_up: Whether each call is made once before, to compile and to warm up.
    """
    ready = {} if warm_up else dict(calls)
    for name, call in calls.items() if warm_up else ():
        with collect_errors(errors, name) if errors is not None else nullcontext():
            jax.block_until_ready(call())
            ready[name] = call
        progress()
    times: dict[Any, list[float]] = {name: [] for name in ready}
    for _ in range(repeats):
        for name, call in ready.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - began)
            progress()
    return {name: Timing.of(samples) for name, samples in times.items()}
