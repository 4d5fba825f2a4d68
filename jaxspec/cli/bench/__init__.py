"""`jaxspec bench`: measurements, written to files; one module a sub-command."""

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
    """Registers the command."""
    parser = commands.add_parser(
        "bench",
        help="measure, and write reports",
        description="Measures, and writes what was found to files.",
        epilog="Each has its own options: jaxspec bench generate --help",
    )
    parser.add_argument(
        "--plan", action="store_true", help="short for `plan` with its defaults"
    )
    measurements = parser.add_subparsers(dest="what", metavar="WHAT")
    modules = generate, decode, verify, train, drafters, stream, plan, relaxation
    modules += text, overhead, int8, compiled, hardware
    for module in modules:
        module.add_parser(measurements)

    def run(arguments) -> None:
        if not arguments.plan:
            parser.error("say what: " + ", ".join(measurements.choices))
        defaults = measurements.choices["plan"].parse_args([])
        defaults.run(defaults)

    parser.set_defaults(run=run)
