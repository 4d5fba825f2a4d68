"""`jaxspec bench overhead`: what a round costs beside the two models."""

import argparse

from jaxspec.cli.bench.output import (
    add_numbers,
    add_out,
    check_numbers,
    check_out,
    command_line,
    write_report,
)

SUFFIXES = (".json", ".md")
NUMBERS = {
    "batch": (8, "rows"),
    "nodes": (64, "nodes of the tree"),
    "vocab": (16384, "size of the vocabulary"),
    "repeats": (20, "timed rounds of each rule"),
}


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "overhead",
        help="what a round costs beside target and drafter",
        description="Times whole rounds without any forward pass: noise, rule, tree, "
        "cache moves and counters, beside one softmax over the same logits and, on an "
        "accelerator, beside a verify pass of GPT-L.",
        epilog="Example: jaxspec bench overhead --out docs/reports/overhead_cpu",
    )
    add_numbers(parser, **NUMBERS)
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    check_numbers(arguments, batch=1, nodes=2, vocab=128, repeats=1)
    numbers = {name: getattr(arguments, name) for name in NUMBERS}
    check_out(arguments.out, *SUFFIXES)

    from jaxspec.bench.overhead import measure_overhead, overhead_markdown

    changed = {k: [v] for k, v in numbers.items() if v != NUMBERS[k][0]}
    command = command_line("bench overhead", {**changed, "out": [arguments.out]})
    result = measure_overhead(
        batch=arguments.batch,
        nodes=arguments.nodes,
        vocab_size=arguments.vocab,
        repeats=arguments.repeats,
    )
    write_report(arguments.out, command, result, overhead_markdown)
