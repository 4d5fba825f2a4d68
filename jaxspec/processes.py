"""Several processes, one program: joining them, and what they tell one another."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxspec.errors import ConfigError, ProcessError

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
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=300,
            heartbeat_timeout_seconds=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise ProcessError(
            f"process {index} of {count} cannot join at {coordinator} ({reason}); "
            "check that process 0 runs there and that the port is open"
        ) from None


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Tells in one line that another process has gone, where that is what happened.

    Raises:
      ProcessError: instead of what the communication library says.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines()[0][:160]
        raise ProcessError(
            f"process {jax.process_index()} has lost another one ({reason}); what was "
            "written is whole: start all processes again to go on"
        ) from None


def any_process(flags: np.ndarray) -> np.ndarray:
    """Flags that are set in any process."""
    return np.any(_gathered(flags), axis=0)


def sum_of_processes(values: np.ndarray) -> np.ndarray:
    """Sums over all processes."""
    return np.sum(_gathered(values), axis=0)


def _gathered(x: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return np.asarray(x)[None]
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.asarray(x)))
