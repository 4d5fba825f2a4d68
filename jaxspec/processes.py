"""Several processes, one program: joining them, and what they tell one another."""

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

# After so many seconds without a sign of life a process counts as dead.
PATIENCE = 30


def join(coordinator: str, count: int, index: int) -> None:
    """Joins the processes of a run; call it before any device is used.

    Args:
      coordinator: "HOST:PORT" of process 0, which must be free there; or "auto" where
        a cluster tells who is who (TPU pods, Slurm), and the numbers do not matter.
      count: of all processes.
      index: of this one, from 0.

    Raises:
      ConfigError: impossible numbers or address.
      ProcessError: the others could not be reached.
    """
    given: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": count,
        "process_id": index,
    }
    if coordinator == "auto":
        given = {}
    elif not re.fullmatch(r"[^\s:]+:\d{1,5}", coordinator):
        raise ConfigError(f"coordinator {coordinator!r} is not of the form HOST:PORT")
    elif count < 1 or not 0 <= index < count:
        raise ConfigError(f"process {index} of {count}: count from 0")
    import jax

    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=2 * PATIENCE,
            heartbeat_timeout_seconds=PATIENCE,
            shutdown_timeout_seconds=2 * PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise ProcessError(
            f"process {index} of {count} cannot join at {coordinator} ({reason}); "
            "check that process 0 runs there and that the port is open"
        ) from None


def run_supervised() -> None:
    """Goes on in a child process, over whose end the parent watches.

    The communication library ends a process that has lost another one, wherever it is,
    with a trace of its own calls. The parent then says what happened. Call it before
    jax is imported; where it was, as in a notebook, this does nothing.

    Raises:
      ProcessError: in the parent, if the child was ended so.
      SystemExit: in the parent, with the child's status.
    """
    if "jax" in sys.modules or not hasattr(os, "fork"):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _end_with(parent)
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: os.kill(child, n))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        what = "has lost another process, see above"
        if number != signal.SIGABRT:
            what = f"was ended by {signal.Signals(number).name}"
        raise ProcessError(
            f"this process {what}; what was written is whole: start all processes "
            "again to go on"
        )
    raise SystemExit(os.WEXITSTATUS(status))


def _end_with(parent: int) -> None:
    """Ends this process when its parent ends, where the system can do that."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # too late for that
        os._exit(1)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process at once when it fails, so that the others notice.

    Without it the communication library waits for the others on the way out, and they
    for this one. With one process it does nothing.
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
            f"jaxspec: process {jax.process_index()} stops: {reason}; what was written "
            "is whole: start all processes again to go on",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(2)


def any_process(flags: np.ndarray) -> np.ndarray:
    """Flags that are set in any process."""
    return np.any(_gathered(flags), axis=0)


def sum_of_processes(values: np.ndarray) -> np.ndarray:
    """Sums over all processes."""
    return np.sum(_gathered(values), axis=0)


def _gathered(x: np.ndarray) -> np.ndarray:
    import jax

    if jax.process_count() == 1:
        return np.asarray(x)[None]
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.asarray(x)))


def check_same_arguments(settings: Any) -> None:
    """Refuses processes that were asked for different things.

    Raises:
      ConfigError: in all of them.
    """
    text = json.dumps(settings, sort_keys=True, default=repr)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    if (_gathered(digest) != digest).any():
        raise ConfigError(
            "the processes were started with different options or prompts; give all of "
            "them the same"
        )
