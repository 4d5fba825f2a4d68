"""Checks of the commands that pages show."""

import argparse
import re
import shlex
from pathlib import Path

from jaxspec.cli.main import build_parser

ROOT = Path(__file__).parents[1]


def commands_in(text):
    """Commands of the shell blocks of a page that run jaxspec or a module of it."""
    commands = []
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "jaxspec":
                commands.append(shlex.join(words[1:]))
    return commands


def check_command(command):
    """Parses a command; files of this repository that it names must exist."""
    words = shlex.split(command)
    placeholders = {"N": "2", "I": "0"}  # upper-case words are placeholders
    parsed = build_parser().parse_args([placeholders.get(x, x) for x in words])
    assert isinstance(parsed, argparse.Namespace)
    for word in words:
        if word.startswith(("configs/", "docs/", "checkpoints/")):
            assert (ROOT / word).exists(), word
