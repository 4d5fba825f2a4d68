"""`jaxspec bench hardware`: all speed benchmarks on this device."""

import argparse

from jaxspec.cli.reports import add_numbers, add_out, check_numbers, check_out

SUFFIXES = (".json", ".md")


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "hardware",
        help="all speed benchmarks on this device, with a time limit",
        description="Runs the speed benchmarks one after another, most important "
        "first, and starts none after the time limit. Accelerators run GPT-XL with "
        "forced acceptance (XLA, Pallas, int8), training of GPT-B, and the default "
        "model; CPUs run small models.",
        epilog="Example: jaxspec bench hardware --out docs/reports/h100",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of weights and caches (default: bfloat16, on CPUs float32)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=5.5,
        metavar="N",
        help="time limit, after which no benchmark is started (default: 5.5)",
    )
    add_numbers(parser, repeats=(3, "number of timed runs of each program"))
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
    check_numbers(arguments, "repeats")
    check_out(arguments.out, *SUFFIXES)

    from jaxspec.bench.hardware import bench_hardware
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.report import json_bytes
    from jaxspec.sharding.device import default_dtype, device_name

    stem, dtype = arguments.out, arguments.dtype or default_dtype()
    command = f"jaxspec bench hardware --dtype {dtype} --minutes {arguments.minutes:g}"
    command += f" --repeats {arguments.repeats} --out {stem}"
    tables = [f"# Speed on {device_name()}", "", f"`{command}`", ""]

    def save(result: dict, table: str) -> None:
        """Writes the report so far; the device may be lost before the end."""
        tables.append(table.replace("# ", "## ", 1))
        write_file(stem + ".md", "\n".join(tables).encode())
        write_file(stem + ".json", json_bytes({"command": command, **result}))
        print(table)

    result = bench_hardware(
        dtype=dtype, repeats=arguments.repeats, minutes=arguments.minutes, save=save
    )
    if result["skipped"]:
        skipped = ", ".join(result["skipped"])
        save(result, f"Skipped after the time limit: {skipped}.\n")
