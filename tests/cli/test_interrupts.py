"""Interrupts end the program with status 130, one line, and within seconds."""

import signal
import subprocess
import sys
import time

import pytest

# A command whose main thread, and possibly a second one, is busy for a minute.
BUSY = """
import hashlib, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may ignore it
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
BUSY_BODIES = {
    "waiting": "time.sleep(60)",
    "beside a thread": "threading.Timer(60, print).start(); time.sleep(60)",
    # A single bytecode instruction, like the compilation of a program.
    "a long call": "hashlib.pbkdf2_hmac('sha256', b'', b'', 200_000_000)",
}


@pytest.mark.parametrize("body_name", BUSY_BODIES)
def test_an_interrupt_ends_the_program_in_seconds(body_name):
    code = BUSY.format(BUSY_BODIES[body_name])
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


def test_a_handler_of_the_user_is_respected():
    body = "signal.signal(2, lambda *_: None); os.kill(os.getpid(), 2); time.sleep(1)"
    code = "import os, signal" + BUSY.format(body)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")
