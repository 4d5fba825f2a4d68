"""Command line of a study."""

from collections.abc import Sequence

from jaxspec.bench.description import Benchmark
from jaxspec.cli.bench import add_options
from jaxspec.cli.help import Parser
from jaxspec.cli.main import main


def run_study(study: Benchmark, argv: Sequence[str] | None = None) -> int:
    """Runs a study and returns its exit status.

    Args:
      study: Description of the study.
      argv: Words of the command line; None for those of the process.
    """

    def make_parser() -> Parser:
        parser = Parser(
            prog=study.program, description=study.description, epilog=study.example
        )
        add_options(parser, study)
        return parser

    return main(argv, make_parser)
