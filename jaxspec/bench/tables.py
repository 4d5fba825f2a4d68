"""What reports on speed have in common: heads, tables, comparisons."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxspec import __version__
from jaxspec.device import device_name
from jaxspec.timing import RULE, Timing, ratio_fields, shown


def environment() -> dict[str, Any]:
    """Device and versions."""
    return {
        "device": device_name(),
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
    }


def heading(title: str, result: dict[str, Any], words: str) -> str:
    """Title, command, device, ceilings, and what the numbers mean."""
    ceilings = result["ceilings"]
    options = result.get("compiler_options")
    failed = [f"- {way}: {why}" for way, why in result.get("failed", {}).items()]
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
            f'{words} "Bound" is the larger of bytes over bandwidth and operations '
            "over rate (each input read once, each output written once); "
            f'"achieved" is bound over time. {RULE}',
            "",
            *(["Could not be measured:", "", *failed, ""] if failed else []),
            "",
        ]
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def compared(
    result: dict[str, Any], before: dict[str, Any], keys: Sequence[str]
) -> str:
    """Ratios of this report's medians to another's, for rows that both have.

    Args:
      result: this report.
      before: the other one.
      keys: columns that tell rows apart.
    """

    def identity(row):
        return tuple(row.get(key) for key in keys)

    def timing(row, report):
        return Timing.of_row(row, report.get("repeats", 1))

    old = {identity(row): timing(row, before) for row in before["rows"]}
    rows = []
    for row in result["rows"]:
        if identity(row) in old:
            pair = timing(row, result), old[identity(row)]
            rows.append([*identity(row), shown(ratio_fields(ratio=pair), "ratio")])
    words = (
        f"Against `{before.get('command', 'an earlier report')}` on "
        f"{before['device']}, jax {before['versions']['jax']}: time now over time then."
    )
    for name in ("device", "dtype", "compiler_options"):
        then, now = before.get(name), result.get(name)
        if then != now:
            words += f" The {name} was {then}, and is {now}."
    if not rows:
        return words + " No row is in both.\n"
    return f"{words} {RULE}\n\n" + table([*keys, "ratio"], rows)
