"""Output distribution of lossy verifiers at one position, over acceptance.

Compares `CoupledRelaxed` with LANTERN, both as implemented in `speculative.verify`.
The distribution of the emitted token after a prefix is computed exactly for each draft.
With one child per node all drafts are enumerated, so that no sampling is involved.
"""

from dataclasses import replace

from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.registry import CHECKPOINT, SEED

STUDY = Benchmark(
    "relaxation",
    summary="acceptance and distortion of lossy verifiers",
    description="Computes how often CoupledRelaxed and LANTERN accept a drafted token, "
    "and the distance between the distribution of the emitted token and the target's, "
    "in two synthetic settings and for the checkpoint, with one and with three "
    "children. Takes minutes.",
    example="Example: python -m docs.studies.relaxation "
    "--out docs/reports/relaxation_cpu",
    options=(
        CHECKPOINT,
        Option(
            "toys",
            "number of positions of each synthetic setting",
            int,
            default=8,
            least=1,
        ),
        Option(
            "images",
            "number of positions of the checkpoint, one in each image",
            int,
            default=16,
            least=1,
        ),
        Option(
            "drafts",
            "number of drafts of several children per position, a power of 2",
            int,
            default=4096,
            least=1,
        ),
        Option(
            "samples",
            "number of noise samples for several children",
            int,
            default=1 << 19,
            least=1,
        ),
        replace(SEED, help="seed of images, drafts and noise", least=0),
    ),
    measure="docs.studies.relaxation.sweep:run_relaxation",
    markdown="docs.studies.relaxation.report:relaxation_markdown",
    plot="docs.studies.relaxation.report:relaxation_plot",
    program="python -m docs.studies.relaxation",
)
