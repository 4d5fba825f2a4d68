"""All speed benchmarks in one run with a time limit, most important first."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jaxspec.bench.description import Benchmark, load
from jaxspec.bench.registry import DECODE, GENERATE, TRAIN, VERIFY
from jaxspec.evaluate.tables import environment
from jaxspec.pipeline.interleaved import collect_errors
from jaxspec.sharding.device import default_dtype


@dataclass(frozen=True)
class Section:
    """One benchmark of the run.

    Attributes:
      name: Title of its report.
      benchmark: Benchmark.
      values: Values of all of its options.
    """

    name: str
    benchmark: Benchmark
    values: dict[str, Any]

    @property
    def command(self) -> str:
        """Command line that runs the section alone."""
        return self.benchmark.command(self.values, "STEM")

    def measure(self) -> dict[str, Any]:
        """Runs the benchmark; returns its report with the command."""
        return {"command": self.command, **load(self.benchmark.measure)(**self.values)}


def sections(dtype: str, repeats: int) -> list[Section]:
    """Sections for this device, most important first.

    Accelerators run LlamaGen's GPT-XL, CPUs a small model with short sequences.

    Args:
      dtype: Dtype of weights and caches.
      repeats: Number of timed runs of each program.
    """
    common = {"dtype": dtype, "repeats": repeats}
    if jax.default_backend() == "cpu":
        return _cpu_sections(partial(_section, **common, grid=16))
    return _accelerator_sections(partial(_section, **common, grid=24))


def _section(name: str, benchmark: Benchmark, **given: Any) -> Section:
    return Section(name, benchmark, benchmark.values(given))


def _accelerator_sections(section: Callable[..., Section]) -> list[Section]:
    xl = {"models": ["gpt-xl"]}
    pallas = {"variants": ["pallas"]}
    forced = {"batches": [1], "num": 1, "trees": ["optimal-64"], "accept": 4.2}
    free = {"batches": [1], "num": 1, "trees": ["optimal-58"]}
    gpt_b = {"models": ["gpt-b"], "batch": 64, "grid": 16}
    nodes = {"nodes": [26, 64]}
    return [
        section("speculate gpt-xl", GENERATE, **xl, **forced),
        section("decode", DECODE, **xl, variants=["xla", "pallas", "int8"]),
        section("verify", VERIFY, **xl, **nodes),
        section("train", TRAIN, **gpt_b),
        section("speculate default", GENERATE, **free),
        section("verify with Pallas", VERIFY, **xl, **nodes, **pallas),
        section(
            "decode batch 8", DECODE, **xl, batches=[8], variants=["xla", "stages4"]
        ),
        section("speculate gpt-l", GENERATE, models=["gpt-l"], **forced),
        section("speculate gpt-b", GENERATE, models=["gpt-b"], **forced),
    ]


def _cpu_sections(section: Callable[..., Section]) -> list[Section]:
    small = {"models": ["gpt-b"], "tokens": 16}
    one = {"batches": [1], "num": 1}
    forced = {**one, "trees": ["optimal-8"], "accept": 4.2}
    return [
        section("speculate default", GENERATE, **one, trees=["optimal-5"]),
        section("speculate gpt-b", GENERATE, **small, **forced),
        section("decode", DECODE, **small, variants=["xla", "int8"]),
        section("verify", VERIFY, models=["gpt-b"], nodes=[8]),
        section("train", TRAIN, batch=4),
        section("decode default", DECODE, batches=[1, 8], variants=["xla", "stages4"]),
    ]


def measure_hardware(
    *,
    dtype: str | None = None,
    minutes: float = 5.5,
    repeats: int = 3,
    save: Callable[[dict[str, Any]], object] = lambda result: None,
) -> dict[str, Any]:
    """Runs sections until the time limit; a failing section does not end the run.

    Args:
      dtype: Dtype of weights and caches; None for `default_dtype`.
      minutes: Time limit, after which no section is started.
      repeats: Number of timed runs of each program.
      save: Callback that receives the report after each section; the device may be lost
        before the end.

    Returns:
      Report with "sections", reports by name; "failed", error messages by name; and
      "skipped", names of sections that were not started.
    """
    began = time.perf_counter()
    result: dict[str, Any] = {"minutes": minutes, **environment()}
    result |= {"sections": {}, "failed": {}, "skipped": []}
    for section in sections(dtype or default_dtype(), repeats):
        if (time.perf_counter() - began) / 60 >= minutes:
            result["skipped"].append(section.name)
            continue
        with collect_errors(result["failed"], section.name):
            result["sections"][section.name] = {
                "benchmark": section.benchmark.name,
                **section.measure(),
            }
        save(result)
    return result


def hardware_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_hardware`, which may be unfinished."""
    parts = [f"# Speed on {result['device']}", f"`{result['command']}`"]
    for name, report in result["sections"].items():
        table = load(_MARKDOWN[report["benchmark"]])(report)
        title = f"## {name}: "
        parts.append(table.replace("# ", title, 1).rstrip())
    if result["failed"]:
        failed = [f"- {name}: {error}" for name, error in result["failed"].items()]
        parts += ["## Failed", "\n".join(failed)]
    if result["skipped"]:
        parts.append(f"Skipped after the time limit: {', '.join(result['skipped'])}.")
    return "\n\n".join(parts) + "\n"


_MARKDOWN = {x.name: x.markdown for x in (DECODE, GENERATE, TRAIN, VERIFY)}
