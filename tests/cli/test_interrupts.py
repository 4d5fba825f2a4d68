"""Interrupts: status 130, one line, and no waiting for libraries."""

import signal
import subprocess
import sys
import time

import pytest

# A command whose main thread, and perhaps another one, is busy for a minute.
BUSY = """
import hashlib, sys, threading, time
from jaxspec.cli import command, interrupts
interrupts.GRACE_SECONDS = 0.3
def run(arguments):
    print("busy", flush=True)
    {}
import jaxspec.cli.info
jaxspec.cli.info.run = run
sys.argv = ["jaxspec", "info"]
command()
"""
WAYS = {
    "waiting": "time.sleep(60)",
    "beside a thread": "threading.Timer(60, print).start(); time.sleep(60)",
    # One instruction of Python's, as the compilation of a program is.
    "a long call": "hashlib.pbkdf2_hmac('sha256', b'', b'', 200_000_000)",
}


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_ends_the_program_in_seconds(way):
    code = BUSY.format(WAYS[way])
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True
    ) as child:
        assert child.stdout.readline() == "busy\n"
        time.sleep(0.1)
        began = time.perf_counter()
        child.send_signal(signal.SIGINT)
        try:
            _, error = child.communicate(timeout=10)
        finally:
            child.kill()
    assert time.perf_counter() - began < 3
    assert (child.returncode, error) == (130, "jaxspec: interrupted\n")


def test_another_handler_is_left_to_itself():
    own = "signal.signal(2, lambda *_: None); os.kill(os.getpid(), 2); time.sleep(1)"
    code = "import os, signal" + BUSY.format(own)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
