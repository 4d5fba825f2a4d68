"""All speed benchmarks in one run with a time limit, most important first."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from jaxspec.bench.decode import bench_decode, decode_markdown
from jaxspec.bench.generation import bench_generation, generation_markdown
from jaxspec.bench.models import find_model
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.timing import collect_errors
from jaxspec.bench.training import bench_training, training_markdown
from jaxspec.bench.variants import find_variant
from jaxspec.bench.verify import bench_verify, verify_markdown
from jaxspec.evaluate.tables import environment
from jaxspec.speculative.trees.parsing import parse_tree


@dataclass(frozen=True)
class Section:
    """One benchmark of the run.

    Attributes:
      name: Title of its report.
      command: Command that runs this section alone, without `jaxspec` and `--out`.
      measure: Function that makes the report.
      markdown: Function that formats the report.
    """

    name: str
    command: str
    measure: Callable[[], dict[str, Any]]
    markdown: Callable[[dict[str, Any]], str]


def sections(dtype: str, repeats: int) -> Iterator[Section]:
    """Yields the sections for this device, most important first.

    Accelerators run LlamaGen's GPT-XL, CPUs a small model with short sequences.

    Args:
      dtype: Dtype of weights and caches.
      repeats: Number of timed runs of each program.
    """
    small = jax.default_backend() == "cpu"
    grid, tokens = (16, 16) if small else (24, 0)
    size = "gpt-b" if small else "gpt-xl"
    settings = {"grid": grid, "dtype": dtype, "repeats": repeats}
    options = f"--grid {grid} --dtype {dtype} --repeats {repeats}"

    def decode(name, models, batches, variants, tokens=tokens):
        return Section(
            name,
            f"bench decode --models {' '.join(models)} --batches "
            f"{' '.join(map(str, batches))} --variants {' '.join(variants)} "
            f"--tokens {tokens} {options}",
            lambda: bench_decode(
                models,
                batches,
                list(map(find_variant, variants)),
                tokens=tokens,
                **settings,
            ),
            decode_markdown,
        )

    def verify(name, nodes, variants):
        return Section(
            name,
            f"bench verify --models {size} --nodes {' '.join(map(str, nodes))} "
            f"--variants {' '.join(variants)} --passes 16 {options}",
            lambda: bench_verify(
                [size],
                [1],
                nodes,
                list(map(find_variant, variants)),
                passes_per_run=16,
                **settings,
            ),
            verify_markdown,
        )

    def speculate(model, accept, nodes):
        length = tokens if accept else 0

        def measure():
            bundle = find_model(model, grid=grid, dtype=dtype)
            tree = f"optimal-{nodes}"
            rows = bench_generation(
                bundle,
                {tree: parse_tree(tree)},
                [1],
                [2.0],
                num=1,
                repeats=repeats,
                forced=accept,
                length=length or None,
            )
            ceilings = measure_ceilings(dtype).fields()
            fields = {"dtype": dtype, "repeats": repeats, "ceilings": ceilings}
            return {**fields, "rows": rows, **environment()}

        return Section(
            f"speculate {model}",
            f"bench generate --models {model} --trees optimal-{nodes} --batches 1 "
            f"--num 1 {options}"
            + f" --accept {accept}" * bool(accept)
            + f" --tokens {length}" * bool(length),
            measure,
            generation_markdown,
        )

    def train(model, batch):
        train_settings = {**settings, "grid": 16}
        return Section(
            "train",
            f"bench train --models {model} --batch {batch} --steps 3 --grid 16 "
            f"--dtype {dtype} --repeats {repeats}",
            lambda: bench_training(
                [model], ["prior", "drafter"], batch, steps=3, **train_settings
            ),
            training_markdown,
        )

    if small:
        yield speculate("default", None, 5)
        yield speculate(size, 4.2, 8)
        yield decode("decode", [size], [1], ["xla", "int8"])
        yield verify("verify", [8], ["xla"])
        yield train("default", 4)
        yield decode(
            "decode default", ["default"], [1, 8], ["xla", "stages4"], tokens=0
        )
        return
    yield speculate(size, 4.2, 64)
    yield decode("decode", [size], [1], ["xla", "pallas", "int8"])
    yield verify("verify", [26, 64], ["xla"])
    yield train("gpt-b", 64)
    yield speculate("default", None, 58)
    yield verify("verify with Pallas", [26, 64], ["pallas"])
    yield decode("decode batch 8", [size], [8], ["xla", "stages4"])
    yield speculate("gpt-l", 4.2, 64)
    yield speculate("gpt-b", 4.2, 64)


def bench_hardware(
    *,
    dtype: str,
    repeats: int,
    minutes: float,
    save: Callable[[dict[str, Any], str], None],
) -> dict[str, Any]:
    """Runs sections until the time limit; a failing section does not end the run.

    Args:
      dtype: Dtype of weights and caches.
      repeats: Number of timed runs of each program.
      minutes: Time limit, after which no section is started.
      save: Callback after each section; receives the report so far and the section's
        table.

    Returns:
      Report with "sections", reports by name; "failed", error messages by name; and
      "skipped", names of sections that were not started.
    """
    began = time.perf_counter()
    result = {"minutes": minutes, "sections": {}, "failed": {}, "skipped": []}
    result = {**result, **environment()}
    for section in sections(dtype, repeats):
        elapsed = (time.perf_counter() - began) / 60
        if elapsed >= minutes:
            result["skipped"].append(section.name)
            continue
        with collect_errors(result["failed"], section.name):
            command = f"jaxspec {section.command} --out STEM"
            report = {"command": command, **section.measure()}
            result["sections"][section.name] = report
        error = result["failed"].get(section.name)
        text = f"# {section.name}\n\nFailed: {error}\n"
        save(result, text if error else section.markdown(report))
    return result
