"""Report of a generation: a dict for files, a table for the terminal."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxspec import __version__
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.description import describe_run, format_run
from jaxspec.pipeline.generation import GenerationResult
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.timing import ratio_fields, shown
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree

# Labels in a table, and letters of each.
MOST_LABELS, LONGEST_LABEL = 16, 48


def generation_report(
    bundle: Bundle,
    prompts: Prompts,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    result: GenerationResult,
    plain: GenerationResult | None = None,
    loaded: LoadedDrafter | None = None,
) -> dict[str, Any]:
    """Numbers of a generation, as plain JSON types.

    `target_calls` counts, for every image, its prefill and each round until its last
    token; `seconds` leave compilation out.

    Args:
      bundle: models.
      prompts: prompts of the images.
      config: generation settings.
      tree: shape of the drafts; the root alone for plain decoding.
      result: tokens and counters.
      plain: result of plain decoding, to compare; None for no comparison.
      loaded: drafter; None for the bundle's own.
    """
    return {
        **describe_run(bundle, len(prompts), config, tree, loaded, prompts.length),
        "tokens": result.new_tokens,
        "target_calls": int(result.calls.sum()),
        "tokens_per_call": result.tokens_per_call,
        **result.timing.fields(),
        "compile_seconds": result.compile_seconds,
        **({} if plain is None else _comparison(result, plain)),
        "near_ties_decided_again": result.rescored,
        "proposed_tokens": int(result.proposed.sum()),
        "accepted_tokens": int(result.hits.sum()),
        "accepted_histogram": result.accepted.sum(0).tolist(),
        **(
            {"prompts": list(prompts.texts)}
            if prompts.condition == "caption"
            else {"classes": np.asarray(prompts.values).tolist()}
        ),
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
    }


def _comparison(result: GenerationResult, plain: GenerationResult) -> dict[str, Any]:
    """Entries about plain decoding of the same images."""
    return {
        "baseline_target_calls": int(plain.calls.sum()),
        **{f"baseline_{k}": v for k, v in plain.timing.fields().items()},
        "baseline_compile_seconds": plain.compile_seconds,
        **ratio_fields(speedup=(plain.timing, result.timing)),
        "identical_to_autoregressive": bool(
            np.array_equal(result.tokens, plain.tokens)
        ),
        "different_tokens": int((result.tokens != plain.tokens).sum()),
    }


def generation_table(report: dict[str, Any], *, heading: bool = True) -> str:
    """A short table of a report.

    Args:
      report: result of `generation_report`; "labels" are added by the caller.
      heading: whether to begin with device, models and settings.
    """
    name = "plain" if report["drafter"] == "none" else "speculative"
    header = f"{'':12}{'tokens':>8}{'target calls':>14}{'tokens/call':>13}"
    lines = [f"{header}{'seconds':>9}{'compile':>9}", _row(report, name)]
    compared = "baseline_seconds" in report
    if compared:
        lines.append(_row(report, "plain", "baseline_"))
    if heading:
        lines = [format_run(report), "", *lines]
    labels = labels_line(report.get("labels", ()))
    lines += ["", *([labels] if labels else [])]
    if compared:
        lines += [f"speedup     {_speedup(report)}", f"identical   {_same(report)}"]
    return "\n".join(lines).rstrip()


def _row(report: dict[str, Any], name: str, prefix: str = "") -> str:
    """A row of the table, of the numbers whose keys have a prefix."""
    tokens, calls = report["tokens"], report[f"{prefix}target_calls"]
    counts = f"{tokens:>8}{calls:>14}{tokens / calls:>13.2f}"
    times = f"{report[f'{prefix}seconds']:>9.2f}"
    return f"{name:12}{counts}{times}{report[f'{prefix}compile_seconds']:>9.1f}"


def labels_line(labels: Sequence[str]) -> str:
    """Class names or captions in the order of the grid, shortened if there are many.

    Prompts that were repeated to fill the grid are named once.
    """
    kinds = list(dict.fromkeys(labels))
    cycle = [kinds[i % len(kinds)] for i in range(len(labels))]
    repeated = cycle == list(labels) and len(kinds) < len(labels)
    shown_labels = [
        textwrap.shorten(x, LONGEST_LABEL, placeholder=" ...")
        for x in (kinds if repeated else labels)
    ]
    words = ", ".join(shown_labels[:MOST_LABELS])
    if (more := len(shown_labels) - MOST_LABELS) > 0:
        words += f" and {more} more"
    if repeated:
        words += f", repeated to {len(labels)}"
    wrapped = textwrap.wrap(words, 66, break_long_words=False, break_on_hyphens=False)
    return "\n".join(
        f"{'' if i else 'shown':12}{line}" for i, line in enumerate(wrapped)
    )


def _same(report: dict[str, Any]) -> str:
    """Whether the tokens are those of plain decoding, and the reason if they differ."""
    if report["identical_to_autoregressive"]:
        return "yes, every token"
    same = f"NO, {report['different_tokens']} tokens differ"
    if not report["lossless"]:
        return f"{same} (the verifier is LOSSY)"
    if not report["promises_identity"]:
        return f"{same} (this verifier keeps the distribution, not the tokens)"
    return same


def _speedup(report: dict[str, Any]) -> str:
    """Formats the speedup; single timings are marked as no measurement."""
    words = shown(report, "speedup", "x")
    if "speedup_marked" not in report:
        return words
    return f"{words}; `jaxspec bench generate` repeats and measures"


def json_bytes(report: dict[str, Any]) -> bytes:
    """Indented JSON with a final newline."""
    return (json.dumps(report, indent=2) + "\n").encode()
