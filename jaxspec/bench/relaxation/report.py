"""What was measured, as Markdown and as an image."""

from collections.abc import Sequence
from typing import Any

from jaxspec.bench.plot import Line, Panel, plot_panels
from jaxspec.bench.relaxation.equal_acceptance import EXACT
from jaxspec.images import png_bytes


def relaxation_markdown(result: dict[str, Any], image: str | None = None) -> str:
    """Tables at equal acceptance, then every row that was measured.

    Args:
      result: of `measure_relaxation`, with the `command`.
      image: address of the plot, if it is to be shown.
    """
    rows, compared = result["rows"], result["equal_acceptance"]
    metadata = [
        f"- {name}: {x['positions']} positions, {x['codes']} codes in "
        f"{x['dimensions']} dimensions; `p` and `q` overlap by {x['overlap']:.3f}."
        for name, x in result["settings"].items()
    ]
    sections = list(dict.fromkeys((r["setting"], r["children"]) for r in rows))
    lines = [
        f"# What relaxed rules do to the law of one token: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}.",
        "",
        _HOW.format(**result).strip(),
        "",
        *metadata,
        "",
        *([f"![TV over acceptance]({image})", ""] if image else []),
        "## At equal acceptance",
        "",
        _COMPARISON.strip(),
        "",
        *_summary(sections, rows, compared),
    ]
    for section in sections:
        here = [r for r in compared if (r["setting"], r["children"]) == section]
        lines += ["", f"### {_words(section)}", "", *_comparison(here)]
    lines += ["", "## Everything measured"]
    for section in sections:
        here = [r for r in rows if (r["setting"], r["children"]) == section]
        lines += ["", f"### {_words(section)}: all rows", "", *_everything(here)]
    return "\n".join(lines) + "\n"


_HOW = """
The law of the token that comes out after a prefix, for one node with one or three
drafted children, against the target's `p`. Acceptance is the chance that a child is
followed, TV the total variation distance, W1 the Wasserstein-1 distance in the
Euclidean metric of the codebook (by linear programming, toys alone). "W1 at most" is
the mean distance between the emitted code and the one that exact sampling samples with
the same noise: a bound of W1 that only our rule and `coupled` have. All are means over
positions.

"Blind" children are drawn from `q` without replacement; LANTERN has these alone.
"Coupled" children are the best of `log q + noise`, the noise being that of the target's
own sample. The law given a draft is always exact. One child: all drafts are listed with
their chances, coupled ones with the exact joint law of child and sample, so nothing is
sampled. Three: {drafts} independent drafts for each position, the same for all rules, and
{samples} samples of the noise. What that sampling alone leaves is the TV of the lossless
rules, `rejection` for independent and `coupled` for coupled children; nothing is subtracted.

In the toys codes are random unit vectors and `p` is drawn from Dirichlet(.5). The near
drafter's `q` is `p` with standard normal noise on its logits; the far drafter's is
another draw from Dirichlet(.5). In the last setting `p` and `q` are the processed
distributions of the target and of its block drafter (first drafted token) after the
same prefix: one random place in each of so many plainly drawn images, cfg 2,
temperature 1.
"""

_COMPARISON = """
"LANTERN" is the best of all its curves (LANTERN and LANTERN++, every k) at our row's
acceptance: the least TV, linear between swept settings, the nearest of which is named.
First with the residual as published, then with the optimal one. A ratio below 1 says
that ours distorts less; it is infinite where `rejection` accepts as much without loss.
The summary counts the relaxed rows of ours with coupled children.
"""


def _summary(sections, rows, compared) -> list[str]:
    table = _table(
        "setting | `rejection` accepts | `coupled` accepts | ours distorts less than "
        "LANTERN | than with the optimal residual"
    )
    for section in sections:
        here = [r for r in rows if (r["setting"], r["children"]) == section]
        lossless = {(r["verifier"], r["drafts"]): r["acceptance"] for r in here}
        ours = [
            r
            for r in compared
            if (r["setting"], r["children"], r["drafts"]) == (*section, "coupled")
            and r["verifier"] != "coupled"
        ]
        line = [_words(section), _3(lossless["rejection", "independent"])]
        line.append(_3(lossless[EXACT]))
        for name in ("lantern", "lantern_optimal"):
            pairs = [(r, r[name]) for r in ours if r[name] is not None]
            less = [x for x, y in pairs if _relaxed(y) and x["tv"] < y["tv"]]
            line.append(f"in {len(less)} of {len(pairs)} rows")
        table.append(_row(line))
    return table


def _relaxed(row: dict[str, Any]) -> bool:
    return row["verifier"] != "rejection"


def _comparison(rows: Sequence[dict[str, Any]]) -> list[str]:
    table = _table(
        "ours | children | acceptance | TV | W1 | W1 at most | LANTERN | TV | W1 "
        "| TV ratio | optimal residual | TV | TV ratio"
    )
    for row in rows:
        line = [f"`{row['verifier']}`", row["drafts"], *_numbers(row), _3(row["shift"])]
        for name in ("lantern", "lantern_optimal"):
            other = row[name]
            w1 = [] if name == "lantern_optimal" else [_3(other and other["w1"])]
            if other is None:
                line += ["none", "-", *w1, "-"]
                continue
            ratio = "-" if row["verifier"] == "coupled" else "inf"
            if _relaxed(other):
                ratio = f"{row['tv'] / other['tv']:.2f}"
            line += [f"`{other['verifier']}`", _3(other["tv"]), *w1, ratio]
        table.append(_row(line))
    return table


def _everything(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of our rules and the lossless ones, and one of LANTERN's."""
    ours = _table(
        "rule | independent: acceptance | TV | W1 | W1 at most "
        "| coupled: acceptance | TV | W1 | W1 at most"
    )
    theirs = _table(
        "rule | published residual: acceptance | TV | W1 "
        "| optimal residual: acceptance | TV | W1"
    )
    found = {(r["verifier"], r["drafts"]): r for r in rows}
    for row in rows:
        verifier, line = row["verifier"], [f"`{row['verifier']}`"]
        if row["curve"].startswith("LANTERN"):
            if "optimal" not in row["curve"]:
                optimal = found.get((f"{verifier},residual=optimal", "independent"))
                theirs.append(_row([*line, *_numbers(row), *_numbers(optimal)]))
        elif row["drafts"] == "independent":
            for how in ("independent", "coupled"):
                one = found.get((verifier, how))
                line += [*_numbers(one), _3(one["shift"] if one else None)]
            ours.append(_row(line))
    return [*ours, "", *theirs]


def _words(section: tuple[str, int]) -> str:
    count = section[1]
    return f"{section[0]}, {count} {'child' if count == 1 else 'children'}"


def _table(head: str) -> list[str]:
    return [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]


def _row(line: Sequence[str]) -> str:
    return "| " + " | ".join(line) + " |"


def _3(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"


def _numbers(row: dict[str, Any] | None) -> list[str]:
    names = ("acceptance", "tv", "w1")
    return ["-"] * 3 if row is None else [_3(row[name]) for name in names]


def relaxation_plot(result: dict[str, Any]) -> bytes:
    """TV over acceptance as PNG, a panel for each setting and number of children."""
    wanted = [
        ("LANTERN, published, k=10", "independent", "LANTERN, k=10"),
        ("LANTERN++, published, k=10", "independent", "LANTERN++, k=10"),
        ("LANTERN++, optimal, k=10", "independent", "LANTERN++, optimal residual, k=10"),
        ("ours, radius", "coupled", "ours, radius, coupled"),
        ("ours, budget, k=50", "coupled", "ours, budget, k=50, coupled"),
        ("ours, radius", "independent", "ours, radius, independent"),
    ]
    rows, panels = result["rows"], []
    for section in dict.fromkeys((r["setting"], r["children"]) for r in rows):
        here = [r for r in rows if (r["setting"], r["children"]) == section]
        lossless = {(r["verifier"], r["drafts"]): r for r in here}
        least = lossless[EXACT]
        lines = []
        for curve, how, label in wanted:
            points = [r for r in here if (r["curve"], r["drafts"]) == (curve, how)]
            if how == "coupled":
                points = [least, *points]
            elif curve.startswith("LANTERN"):
                points = [lossless["rejection", "independent"], *points]
            else:  # as far as it accepts what others do without loss
                points = [r for r in points if r["acceptance"] >= least["acceptance"]]
            x, y = ([r[name] for r in points] for name in ("acceptance", "tv"))
            lines.append(Line(label, x, y, dashed=label.endswith("independent")))
        panels.append(Panel(_words(section), lines))
    return png_bytes(plot_panels(panels, "acceptance", "total variation distance"))
