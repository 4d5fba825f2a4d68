"""Interrupt handling: Ctrl-C ends the program within seconds, even in native code."""

import contextlib
import os
import signal
import threading
import time

# Exit status of an interrupted program, by the convention of shells: 128 + SIGINT.
INTERRUPTED = 130
# Seconds that Python has to raise KeyboardInterrupt and clean up.
GRACE_SECONDS = 5.0


def exit_on_interrupt() -> None:
    """Starts a thread that exits the process `GRACE_SECONDS` after an interrupt.

    Python raises KeyboardInterrupt between two bytecode instructions, and compiling a
    program is a single one that may take minutes. Files are written atomically, so that
    an exit at any time leaves no incomplete ones. If SIGINT has a handler other than
    Python's default, the thread does nothing.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(read_end, 1):
            default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if number[0] == signal.SIGINT and default:
                time.sleep(GRACE_SECONDS)
                os.set_blocking(2, False)  # a full pipe must not delay the exit
                with contextlib.suppress(OSError):
                    os.write(2, b"jaxspec: interrupted\n")
                os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()
