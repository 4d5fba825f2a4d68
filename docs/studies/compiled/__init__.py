"""Programs that the compilers of an H100 and of a TPU make, without the devices."""

from dataclasses import replace

from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.registry import BATCHES, CHECKPOINT, DTYPE, GRID, MODELS, VARIANTS

STUDY = Benchmark(
    "compiled",
    summary="kernels of compiled steps for an H100 or a TPU, without the device",
    description="Compiles decode steps, passes over draft trees and rounds for devices "
    "that are not present, and counts the kernels of each. TPUs need the package "
    "libtpu, an H100 needs JAX's CUDA plugin.",
    example="Example: python -m docs.studies.compiled --devices h100 v5e "
    "--models gpt-xl --variants xla pallas --out compiled",
    options=(
        Option(
            "devices",
            "devices: h100, v5e",
            default=("h100", "v5e"),
            several=True,
            metavar="NAME",
            default_text="both",
        ),
        CHECKPOINT,
        replace(
            MODELS, help=MODELS.help.replace("gpt-xl, ...", "gpt-xl, var-d16, ...")
        ),
        VARIANTS,
        GRID,
        BATCHES,
        Option("nodes", "tree sizes", int, default=(26, 64), several=True, least=2),
        replace(DTYPE, default="bfloat16", default_text=""),
    ),
    measure="docs.studies.compiled.report:measure_compiled",
    markdown="docs.studies.compiled.report:compiled_markdown",
    program="python -m docs.studies.compiled",
)
