"""Requests to stop a training: Ctrl-C (SIGINT) and SIGTERM."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """A signal that has arrived.

    Attributes:
      signal: number of the signal; 0 before one has arrived.
    """

    signal: int = 0

    def raise_error(self) -> None:
        """Raises `KeyboardInterrupt` after SIGINT, `SystemExit` after SIGTERM."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.signal)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Records the first signal instead of acting on it; a second one acts at once.

    Signals are handled in the main thread alone; in other threads, and where a program
    has handlers of its own, nothing is recorded.
    """
    request, previous = StopRequest(), {}

    def restore():
        for number, handler in previous.items():
            signal.signal(number, handler)

    def record(number, frame):
        if request.signal:
            request.raise_error()
        request.signal = number
        os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler in (signal.default_int_handler, signal.SIG_DFL):
                previous[number] = signal.signal(number, record)
    try:
        yield request
    finally:
        restore()
