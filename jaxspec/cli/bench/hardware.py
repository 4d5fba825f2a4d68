"""`jaxspec bench hardware`: everything about speed on this device, in minutes."""

import argparse

from jaxspec.cli.bench.output import add_numbers, add_out, check_numbers, check_out

SUFFIXES = (".json", ".md")


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "hardware",
        help="decode, verify, speculate and train on this device, with a deadline",
        description="Runs the measurements of speed one after another, most important "
        "first, and begins none after the deadline. On an accelerator: GPT-XL with "
        "synthetic acceptance, by XLA, by the kernel and in eight bits, training of "
        "GPT-B, the default model; on a CPU, small.",
        epilog="Example: jaxspec bench hardware --out docs/reports/h100",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and caches (default: bfloat16, on a CPU float32)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=5.5,
        metavar="N",
        help="no measurement begins lazy (default: 5.5)",
    )
    add_numbers(parser, repeats=(3, "timed runs of each"))
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    check_numbers(arguments, "repeats")
    check_out(arguments.out, *SUFFIXES)

    from jaxspec.bench.hardware import bench_hardware
    from jaxspec.device import default_dtype, device_name
    from jaxspec.report import json_bytes
    from jaxspec.writing import write_file

    stem, dtype = arguments.out, arguments.dtype or default_dtype()
    command = f"jaxspec bench hardware --dtype {dtype} --minutes {arguments.minutes:g}"
    command += f" --repeats {arguments.repeats} --out {stem}"
    tables = [f"# Speed on {device_name()}", "", f"`{command}`", ""]

    def keep(result: dict, table: str) -> None:
        """Writes what is there already: the device may not be held for long."""
        tables.append(table.replace("# ", "## ", 1))
        write_file(stem + ".md", "\n".join(tables).encode())
        write_file(stem + ".json", json_bytes({"command": command, **result}))
        print(table)

    result = bench_hardware(
        dtype=dtype, repeats=arguments.repeats, minutes=arguments.minutes, keep=keep
    )
    if result["skipped"]:
        left = ", ".join(result["skipped"])
        keep(result, f"The time was up before: {left}.\n")
