"""Multi-process runs: initialization, failures, and sums over processes."""

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxspec.errors import ConfigError, JaxspecError, ProcessError

# Seconds without a heartbeat after which a process counts as dead.
HEARTBEAT_TIMEOUT = 30


def join(coordinator: str, count: int, index: int) -> None:
    """Connects the processes of a run; call it before any device is used.

    Args:
      coordinator: "HOST:PORT" of process 0, with a port that is free there; or "auto"
        on clusters that JAX detects (TPU pods, Slurm), where `count` and `index` are
        ignored.
      count: number of processes.
      index: index of this process, from 0.

    Raises:
      ConfigError: the address, the number or the index is impossible.
      ProcessError: the other processes cannot be reached.
    """
    arguments: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": count,
        "process_id": index,
    }
    if coordinator == "auto":
        arguments = {}
    elif not re.fullmatch(r"[^\s:]+:\d{1,5}", coordinator):
        raise ConfigError(f"coordinator {coordinator!r} is not of the form HOST:PORT")
    elif count < 1 or not 0 <= index < count:
        raise ConfigError(f"process {index} of {count}: the first index is 0")
    import jax

    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=2 * HEARTBEAT_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=2 * HEARTBEAT_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise ProcessError(
            f"process {index} of {count} cannot join at {coordinator} ({reason}); "
            "check that process 0 runs there and that the port is open"
        ) from None


def run_supervised() -> None:
    """Continues in a child process; the parent waits for it and reports how it ended.

    When JAX's coordination service loses a process, it aborts the others with a stack
    trace. The parent turns this into one error. Call this function before jax is
    imported; after that, as in a notebook, it does nothing.

    Raises:
      ProcessError: in the parent, if a signal ended the child.
      SystemExit: in the parent, with the child's exit status.
    """
    if "jax" in sys.modules or not hasattr(os, "fork"):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _exit_with_parent(parent)
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: os.kill(child, n))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        reason = "has lost another process, see above"
        if number != signal.SIGABRT:
            reason = f"was ended by {signal.Signals(number).name}"
        raise ProcessError(
            f"this process {reason}; files that were written are complete: start all "
            "processes again to continue"
        )
    raise SystemExit(os.WEXITSTATUS(status))


def _exit_with_parent(parent: int) -> None:
    """Makes the system kill this process when its parent ends (Linux only)."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(1)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Exits this process at once if the block raises, so that the others abort too.

    Otherwise JAX would wait for the other processes at shutdown, and they for this one.
    With a single process the error is raised as usual.
    """
    import jax

    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip() or type(error).__name__
        if not isinstance(error, JaxspecError):
            reason = f"{type(error).__name__}: {reason.splitlines()[0][:200]}"
        print(
            f"jaxspec: process {jax.process_index()} stops: {reason}; files that were "
            "written are complete: start all processes again to continue",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(2)


def any_process(flags: np.ndarray) -> np.ndarray:
    """Logical or of `flags` over all processes, element by element."""
    return np.any(_all_gather(flags), axis=0)


def sum_of_processes(values: np.ndarray) -> np.ndarray:
    """Sums of `values` over all processes, element by element."""
    return np.sum(_all_gather(values), axis=0)


def _all_gather(x: np.ndarray) -> np.ndarray:
    """Stacks the arrays of all processes along a new first axis."""
    import jax

    if jax.process_count() == 1:
        return np.asarray(x)[None]
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.asarray(x)))


def check_same_arguments(settings: Any) -> None:
    """Checks that all processes were started with the same settings.

    Args:
      settings: anything that `json.dumps` can write; other values are compared by
        their `repr`.

    Raises:
      ConfigError: in every process, if the settings of any two differ.
    """
    text = json.dumps(settings, sort_keys=True, default=repr)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    if (_all_gather(digest) != digest).any():
        raise ConfigError(
            "the processes were started with different options or prompts; give all of "
            "them the same"
        )
