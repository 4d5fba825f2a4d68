"""Everything about speed in one run with a deadline, most important first."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from jaxspec.bench.decode import bench_decode, decode_markdown
from jaxspec.bench.generation import bench_generation, generation_markdown
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.subjects import find_subject
from jaxspec.bench.tables import environment
from jaxspec.bench.training import bench_training, training_markdown
from jaxspec.bench.variants import find_variant
from jaxspec.bench.verify import bench_verify, verify_markdown
from jaxspec.trees import find_tree


@dataclass(frozen=True)
class Section:
    """One measurement of the run.

    Attributes:
      name: of its report.
      command: that makes this section alone.
      measure: makes the report.
      markdown: makes its table.
    """

    name: str
    command: str
    measure: Callable[[], dict[str, Any]]
    markdown: Callable[[dict[str, Any]], str]


def sections(dtype: str, repeats: int) -> Iterator[Section]:
    """What is measured on this device: on an accelerator, LlamaGen's GPT-XL."""
    gpu = jax.default_backend() == "gpu"
    small = jax.default_backend() == "cpu"
    grid, tokens = (16, 16) if small else (24, 0)
    size = "gpt-b" if small else "gpt-xl"
    ways = ["xla", "int8"] if small else ["xla", "pallas", "int8", "pallas+int8"]
    ways += ["cudnn"] * gpu
    settings = {"grid": grid, "dtype": dtype, "repeats": repeats}
    words = f"--grid {grid} --dtype {dtype} --repeats {repeats}"

    def decode(name, models, batches, ways, tokens=tokens):
        return Section(
            name,
            f"bench decode --models {' '.join(models)} --batches "
            f"{' '.join(map(str, batches))} --variants {' '.join(ways)} "
            f"--tokens {tokens} {words}",
            lambda: bench_decode(
                models,
                batches,
                list(map(find_variant, ways)),
                tokens=tokens,
                **settings,
            ),
            decode_markdown,
        )

    def verify(nodes, ways):
        return Section(
            "verify",
            f"bench verify --models {size} --nodes {' '.join(map(str, nodes))} "
            f"--variants {' '.join(ways)} --passes 16 {words}",
            lambda: bench_verify(
                [size], [1], nodes, list(map(find_variant, ways)), passes_a_run=16,
                **settings,
            ),
            verify_markdown,
        )  # fmt: skip

    def speculate(model, accept, nodes):
        def measure():
            bundle = find_subject(model, grid=grid, dtype=dtype)
            tree = f"optimal-{nodes}"
            rows = bench_generation(
                bundle,
                {tree: find_tree(tree)},
                [1],
                [2.0],
                num=1,
                repeats=repeats,
                forced=accept,
                length=tokens or None,
            )
            ceilings = measure_ceilings(dtype).fields()
            shared = {"dtype": dtype, "repeats": repeats, "ceilings": ceilings}
            return {**shared, "rows": rows, **environment()}

        return Section(
            f"speculate {model}",
            f"bench generate --models {model} --trees optimal-{nodes} --batches 1 "
            f"--num 1 --accept {accept} {words}" + f" --tokens {tokens}" * bool(tokens),
            measure,
            generation_markdown,
        )

    def train(model, batch):
        own = {**settings, "grid": 16}
        return Section(
            "train",
            f"bench train --models {model} --batch {batch} --steps 3 --grid 16 "
            f"--dtype {dtype} --repeats {repeats}",
            lambda: bench_training(
                [model], ["prior", "drafter"], batch, steps=3, **own
            ),
            training_markdown,
        )

    yield decode("decode", [size], [1], ways)
    yield verify([8] if small else [26, 64], ways[:2])
    yield speculate(size, 4.2, 8 if small else 64)
    yield train("default" if small else "gpt-b", 4 if small else 64)
    if small:
        yield decode("decode default", ["default"], [1, 8], ["xla"], tokens=0)
        return
    yield decode("decode batch 8", [size], [8], ["xla"])
    yield speculate("gpt-l", 4.2, 64)
    yield speculate("gpt-b", 4.2, 64)


def bench_hardware(
    *, dtype: str, repeats: int, minutes: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs sections until the time is up; those that were not begun are named.

    Args:
      dtype: of weights and caches.
      repeats: timed runs of each program.
      minutes: no section begins later.
      say: is told each table as soon as it is there.

    Returns:
      "sections", their reports by name, and "left_out".
    """
    began, found, left = time.perf_counter(), {}, []
    for section in sections(dtype, repeats):
        passed = (time.perf_counter() - began) / 60
        if passed >= minutes:
            left.append(section.name)
            continue
        report = {"command": f"jaxspec {section.command} --out STEM"}
        found[section.name] = {**report, **section.measure()}
        say(section.markdown(found[section.name]))
    return {"sections": found, "left_out": left, "minutes": minutes, **environment()}
