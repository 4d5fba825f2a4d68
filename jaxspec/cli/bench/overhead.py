"""`jaxspec bench overhead`: cost of a round without its two models."""

import argparse

from jaxspec.cli.reports import (
    add_numbers,
    add_out,
    check_numbers,
    check_out,
    command_line,
    write_report,
)

SUFFIXES = (".json", ".md")
NUMBERS = {
    "batch": (8, "batch size in sequences"),
    "nodes": (64, "tree size"),
    "vocab": (16384, "vocabulary size"),
    "repeats": (20, "number of timed rounds of each verifier"),
}


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "overhead",
        help="cost of a round without target and drafter",
        description="Times whole rounds without forward passes: noise, verifier, tree, "
        "cache moves and counters. Compares them with a softmax over the same logits "
        "and, on accelerators, with a verify pass of GPT-L.",
        epilog="Example: jaxspec bench overhead --out docs/reports/overhead_cpu",
    )
    add_numbers(parser, **NUMBERS)
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
    check_numbers(arguments, batch=1, nodes=2, vocab=128, repeats=1)
    numbers = {name: getattr(arguments, name) for name in NUMBERS}
    check_out(arguments.out, *SUFFIXES)

    from docs.studies.overhead import measure_overhead, overhead_markdown

    changed = {k: [v] for k, v in numbers.items() if v != NUMBERS[k][0]}
    command = command_line("bench overhead", {**changed, "out": [arguments.out]})
    result = measure_overhead(
        batch=arguments.batch,
        nodes=arguments.nodes,
        vocab_size=arguments.vocab,
        repeats=arguments.repeats,
    )
    write_report(arguments.out, command, result, overhead_markdown)
