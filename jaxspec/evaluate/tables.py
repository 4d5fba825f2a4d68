"""Shared parts of benchmark reports: headings, tables, comparisons."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxspec import __version__
from jaxspec.pipeline.timing import RATIO_NOTE, Timing, ratio_fields, shown
from jaxspec.sharding.device import device_name


def environment() -> dict[str, Any]:
    """Device and package versions, as fields of a report."""
    return {
        "device": device_name(),
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
    }


def report_heading(title: str, result: dict[str, Any], description: str) -> str:
    """Formats the head of a report: title, command, device, ceilings, notes.

    Args:
      title: Title.
      result: Report with "command", "device", "versions", "dtype", "repeats" and
        "ceilings"; "compiler_options" and "failed" are optional.
      description: Explanation of the numbers.
    """
    ceilings = result["ceilings"]
    options = result.get("compiler_options")
    failed = [f"- {cell}: {why}" for cell, why in result.get("failed", {}).items()]
    return "\n".join(
        [
            f"# {title}",
            "",
            f"`{result['command']}`",
            "",
            f"Device: {result['device']}, jax {result['versions']['jax']}, "
            f"{result['dtype']}. Measured ceilings: "
            f"{ceilings['bytes_per_second'] / 1e9:.3g} GB/s, "
            f"{ceilings['flops_per_second'] / 1e12:.3g} TFLOP/s. "
            + (f"Compiler options: {options}. " if options else "")
            + f"Medians of {result['repeats']} runs, without compilation.",
            "",
            f'{description} "Bound" is the larger of bytes over bandwidth and FLOPs '
            "over peak rate, with each input read once and each output written once. "
            f'"Achieved" is bound over time. {RATIO_NOTE}',
            "",
            *(["Failed:", "", *failed, ""] if failed else []),
            "",
        ]
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Formats a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def comparison_markdown(
    result: dict[str, Any], before: dict[str, Any], keys: Sequence[str]
) -> str:
    """Formats ratios of this report's medians to those of an earlier report.

    Args:
      result: This report.
      before: Earlier report.
      keys: Columns that identify a row; rows in only one report are omitted.
    """

    def identity(row):
        return tuple(row.get(key) for key in keys)

    def timing(row, report):
        return Timing.from_report(row, report.get("repeats", 1))

    earlier = {identity(row): timing(row, before) for row in before["rows"]}
    rows = []
    for row in result["rows"]:
        if identity(row) in earlier:
            pair = timing(row, result), earlier[identity(row)]
            rows.append([*identity(row), shown(ratio_fields(ratio=pair), "ratio")])
    text = (
        f"Compared with `{before.get('command', 'an earlier report')}` on "
        f"{before['device']}, jax {before['versions']['jax']}: new time / old time."
    )
    for name in ("device", "dtype", "compiler_options"):
        then, now = before.get(name), result.get(name)
        if then != now:
            text += f" The {name} changed from {then} to {now}."
    if not rows:
        return text + " The reports have no rows in common.\n"
    return f"{text} {RATIO_NOTE}\n\n" + markdown_table([*keys, "ratio"], rows)
