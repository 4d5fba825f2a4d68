"""Text generation compared with `transformers`, on the same weights."""

from typing import Any

from jaxspec.bench.description import Benchmark, Option
from jaxspec.errors import ConfigError


def run_text(**values: Any) -> dict[str, Any]:
    """Runs the comparison, see `measure_text`.

    Raises:
      ConfigError: A package is not installed.
    """
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"this study needs {' and '.join(missing)}: pip install -e '.[parity]'"
        )
    from docs.studies.text.methods import measure_text

    return measure_text(**values)


STUDY = Benchmark(
    "text",
    summary="text generation compared with transformers: plain, assisted, DFlash",
    description="Generates the same greedy text with transformers and with jaxspec, "
    "from one set of random weights in Qwen3's architecture: plainly, with the "
    "target's first layers as draft model, and with a random block drafter. Needs "
    "torch and transformers.",
    example="Example: python -m docs.studies.text --layers 12 --width 512 --out text",
    options=tuple(
        Option(name, text, int, default=default, least=1)
        for name, default, text in (
            ("layers", 12, "layers of the target; its drafters have a quarter of them"),
            ("width", 512, "model width of the target"),
            ("heads", 8, "heads of the target"),
            ("vocab", 4096, "vocabulary size"),
            ("tokens", 128, "number of generated tokens"),
            ("repeats", 5, "number of timed runs of each method"),
        )
    ),
    measure=run_text,
    markdown="docs.studies.text.methods:text_markdown",
    identity=("method",),
    program="python -m docs.studies.text",
)
