"""Medians of programs that are timed in turn."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import jax

from jaxspec.timing import Timing


def later(make: Callable[..., Callable[[], Any]], *given: Any) -> Callable[[], Any]:
    """A call that makes its program when it is first made."""
    held: list[Callable[[], Any]] = []

    def call():
        if not held:
            held.append(make(*given))
        return held[0]()

    return call


@contextmanager
def noted(failed: dict[Any, str], name: Any) -> Iterator[None]:
    """Writes down what goes wrong instead of ending everything."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        failed[name] = f"{type(error).__name__}: {lines[0][:200]}"


def side_by_side(
    calls: Mapping[Any, Callable[[], Any]],
    repeats: int,
    progress: Callable[[], object] = lambda: None,
    failed: dict[Any, str] | None = None,
) -> dict[Any, Timing]:
    """Times every call `repeats` times, in turn, so that all see the same machine.

    Each is made once before, which compiles what was not and warms it up. Arrays that
    a call returns are waited for.

    Args:
      calls: by name.
      repeats: timed calls of each.
      progress: called after each call.
      failed: takes the errors of calls that cannot be made even once; they are left
        out. None raises them.
    """
    ready = {}
    for name, call in calls.items():
        with noted(failed, name) if failed is not None else nullcontext():
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
    return {name: Timing.of(each) for name, each in times.items()}
