"""An interrupt ends the program within seconds, whatever it is in the middle of."""

import contextlib
import os
import signal
import threading
import time

# The shell's status for a program that was interrupted.
INTERRUPTED = 130
# So long Python may take to notice an interrupt and to clear up, in seconds.
PATIENCE = 5.0


def end_in_time() -> None:
    """Ends this process a while after an interrupt that nothing has reacted to.

    Python hears of a signal between two of its own instructions, and compiling a
    program is a single one that may take minutes. What is written takes its place when
    it is whole, so nothing is lost by an end in between. A handler other than Python's
    own is left to itself.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(reading, 1):
            own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if number[0] == signal.SIGINT and own:
                time.sleep(PATIENCE)
                os.set_blocking(2, False)  # a full pipe must not hold this up
                with contextlib.suppress(OSError):
                    os.write(2, b"jaxspec: interrupted\n")
                os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()
