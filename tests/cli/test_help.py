"""Help of commands: the common options, and all of them with `--help-all`."""

import argparse
import re

import pytest

from jaxspec.cli import main
from jaxspec.cli.help import Parser, rare
from jaxspec.cli.main import build_parser

RARE = {
    "generate": "--attention --cache-stages --int8 --order --cfg-interval "
    "--coordinator --processes --process --compile-cache --no-chat --max-tokens "
    "--steps --head-steps --solver --policy --schedule",
    "convert": "--weights --target --mesh --allow-objects",
    "eval images": "--compile-cache",
    "bench generate": "--attention --int8 --accept",
    "bench decode": "--compiler-options",
}


def shown(command, option, capsys):
    """Text of a help option, and the names of the options in it."""
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), option])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    return text, set(re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.MULTILINE))


@pytest.mark.parametrize("command", RARE)
def test_rare_options_are_in_the_longer_help_alone(command, capsys):
    short, common = shown(command, "--help", capsys)
    _, every = shown(command, "--help-all", capsys)
    rare_options = set(RARE[command].split())
    assert not rare_options & common and rare_options | common == every
    assert "--help-all" in common
    assert shown(command, "--help", capsys)[0] == short


def parsers(parser, name=""):
    """All parsers below one, by command."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child, subparser in action.choices.items():
                yield from parsers(subparser, f"{name} {child}".strip())


def test_every_command_has_the_longer_help_if_it_hides_something():
    for name, parser in parsers(build_parser()):
        short, long = parser.format_help(), parser.format_help(everything=True)
        assert ("--help-all" in short) == (short != long), name


def test_the_help_of_generate_is_grouped_by_task(capsys):
    text, _ = shown("generate", "--help", capsys)
    heads = [line[:-1] for line in text.splitlines() if re.fullmatch(r"\w.*:", line)]
    tasks = ["images", "sampling", "speculation", "output", "many images", "devices"]
    assert heads == ["options", *tasks]
    assert len(text.splitlines()) < 80


def test_a_parser_of_rare_options_alone_parses_them():
    parser = Parser(prog="x")
    parser.add_argument("--odd", help=rare("50 %% of something"))
    assert parser.parse_args(["--odd", "1"]) == argparse.Namespace(odd="1")
    assert "50 %" in parser.format_help(everything=True)
    assert "odd" not in parser.format_help()
