"""`jaxspec bench`: benchmarks, one module per sub-command."""

from jaxspec.cli.bench import (
    compiled,
    decode,
    drafters,
    generate,
    hardware,
    int8,
    overhead,
    plan,
    relaxation,
    stream,
    text,
    train,
    verify,
)


def add_parser(commands) -> None:
    """Adds the parser of the command."""
    parser = commands.add_parser(
        "bench",
        help="run benchmarks and write reports",
        description="Runs a benchmark and writes its report to files.",
        epilog="Options of a benchmark: jaxspec bench generate --help",
    )
    parser.add_argument(
        "--plan", action="store_true", help="run `plan` with its defaults"
    )
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK")
    modules = generate, decode, verify, train, drafters, stream, plan, relaxation
    modules += text, overhead, int8, compiled, hardware
    for module in modules:
        module.add_parser(benchmarks)

    def run(arguments) -> None:
        if not arguments.plan:
            parser.error("choose a benchmark: " + ", ".join(benchmarks.choices))
        defaults = benchmarks.choices["plan"].parse_args([])
        defaults.run(defaults)

    parser.set_defaults(run=run)
