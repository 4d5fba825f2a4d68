"""Ways of generating images of classes: their times, and what comes out of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.bench.description import Option
from jaxspec.checkpoint import load_checkpoint
from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.data.tfds_images import tfds_images
from jaxspec.errors import ConfigError
from jaxspec.evaluate.image_metrics import frechet_distance
from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.quality import Extractor, classifier_features, read_heldout
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.embedded import find_folder

BATCH = 32
# Options of studies that compare ways; `Comparison.on_fruits` takes their values.
OPTIONS = (
    Option("num", "number of images", int, default=192, least=BATCH),
    Option("seeds", "number of seeds", int, default=3, least=2),
    Option("data-dir", "folder of prepared data", default="data", metavar="DIR"),
    Option("manual-dir", "folder of files of the data set", metavar="DIR"),
)


@dataclass(frozen=True)
class Way:
    """One way of generating.

    Attributes:
      family: Name of its line in a plot.
      name: Name of its row.
      generator: Generator.
      variables: Its parameters.
      bundle: Models, whose tokenizer decodes.
      cfg_scale: CFG scale.
    """

    family: str
    name: str
    generator: Any
    variables: Any
    bundle: Bundle
    cfg_scale: float


@dataclass(frozen=True)
class Comparison:
    """Images and measures that all ways have in common.

    Attributes:
      classes: Class of each image of each batch, int32 [N, B].
      seeds: Number of seeds.
      extract: Features and classes of images.
      real: Features of as many held-out images, float [N x B, E].
      accuracy: Share of these that the classifier gets right.
    """

    classes: np.ndarray
    seeds: int
    extract: Extractor
    real: np.ndarray
    accuracy: float

    @classmethod
    def on_fruits(
        cls,
        bundle: Bundle,
        num: int,
        seeds: int,
        data_dir: str,
        manual_dir: str | None,
    ) -> "Comparison":
        """A comparison on Fruits-360, by the classifier of the embedded bundle.

        Args:
          bundle: Models of these classes.
          num: Number of images, of one class after the other.
          seeds: Number of seeds.
          data_dir: Folder of the prepared data.
          manual_dir: Folder of files that tfds cannot download.

        Raises:
          ConfigError: `num` fills no batch.
        """
        if num % BATCH:
            raise ConfigError(f"--num {num}: choose a multiple of {BATCH}")
        folder = find_folder("fruits64") / "classifier"
        extract = classifier_features(load_checkpoint(folder, "classifier"))
        side = bundle.tokenizer.config.image_size
        source = tfds_images("fruits360_64", "test", side, data_dir, manual_dir)
        held = read_heldout(source, extract, num)
        classes = np.arange(num) % bundle.prior.config.classes
        batches = classes.reshape(-1, BATCH).astype(np.int32)
        return cls(batches, seeds, extract, held.features, held.accuracy)


@dataclass(frozen=True)
class Outcome:
    """Outcome of one way.

    Attributes:
      fields: Fields of its row in a report, lists by seed.
      tokens: Tokens by seed.
      images: Images by seed, uint8.
    """

    fields: dict[str, Any]
    tokens: list[np.ndarray]
    images: list[np.ndarray]

    def errors(self, plain: "Outcome") -> dict[str, Any]:
        """Fields of the difference to plain generation with the same noise."""
        pairs = list(zip(self.images, plain.images, strict=True))
        errors = [np.mean((a - b.astype(np.float64)) ** 2) for a, b in pairs]
        same = [
            float((a == b).mean())
            for a, b in zip(self.tokens, plain.tokens, strict=True)
        ]
        psnr = [float(10 * np.log10(255**2 / e)) if e else None for e in errors]
        return {"same_tokens": same, "psnr": psnr}


def measure_way(way: Way, comparison: Comparison) -> Outcome:
    """Generates all images with each seed; times are without compilation."""
    sampling = Sampling.create(cfg_scale=way.cfg_scale)
    run = jax.jit(partial(generate, way.generator))

    def batch_of(i: int, seed: int):
        keys = batch_keys(seed, jnp.arange(i * BATCH, (i + 1) * BATCH))
        classes = jnp.asarray(comparison.classes[i])
        out = run(way.variables, classes, sampling=sampling, keys=keys)
        return jax.block_until_ready(out)

    batch_of(0, 0)  # compiles
    names = "seconds", "calls", "kept", "distance", "accuracy"
    fields: dict[str, Any] = {name: [] for name in names}
    tokens, images = [], []
    for seed in range(comparison.seeds):
        began = time.perf_counter()
        parts = [batch_of(i, seed) for i in range(len(comparison.classes))]
        fields["seconds"].append(
            (time.perf_counter() - began) / comparison.classes.size
        )
        tokens.append(np.concatenate([np.asarray(part.tokens) for part in parts]))
        images.append(decode_images(way.bundle, tokens[-1]))
        features, found = comparison.extract(images[-1])
        fields["distance"].append(frechet_distance(comparison.real, features))
        right = found == comparison.classes.reshape(-1)
        fields["accuracy"].append(float(right.mean()))
        calls = [float(part.stats.calls.mean()) for part in parts]
        fields["calls"].append(float(np.mean(calls)))
        fields["kept"].append(_kept([part.stats for part in parts]))
    calls = {"calls": float(np.mean(fields.pop("calls")))}
    fields = {"family": way.family, "way": way.name, **calls, **fields}
    return Outcome(fields, tokens, images)


def _kept(stats: list[Any]) -> float | None:
    """Accepted units for each drafted token; None without drafts.

    Units are tokens, or whole token maps of coupled scales.
    """
    proposed = sum(int(part.proposed.sum()) for part in stats)
    if not proposed:
        return None
    counts = np.sum([np.asarray(part.accepted).sum(0) for part in stats], axis=0)
    return float(counts @ np.arange(len(counts)) / proposed)


# Columns of a table by name: `column(row)` is the cell.
Columns = dict[str, Callable[[dict[str, Any]], str]]


def _milliseconds(row: dict[str, Any]) -> str:
    times = 1e3 * np.array(row["seconds"])
    return f"{np.median(times):.0f} ({times.min():.0f} to {times.max():.0f})"


def _distance(row: dict[str, Any]) -> str:
    found = np.array(row["distance"])
    return f"{found.mean():.2f} ± {found.std(ddof=1):.2f}"


TIME_AND_QUALITY: Columns = {
    "ms an image": _milliseconds,
    "Frechet distance": _distance,
    "class accuracy": lambda row: f"{100 * np.mean(row['accuracy']):.0f} %",
}


def cells_of(rows: list[dict[str, Any]], columns: Columns) -> list[list[str]]:
    """Cells of a table, by row."""
    return [[cell(row) for cell in columns.values()] for row in rows]


def plot_distances(rows: list[dict[str, Any]]) -> np.ndarray:
    """Distance over time and over calls, one line for each family of ways."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)

    def lines(value: Callable[[dict[str, Any]], float]) -> list[Line]:
        found = []
        for name, ways in families.items():
            points = sorted((value(row), np.mean(row["distance"])) for row in ways)
            found.append(Line(name, [x for x, _ in points], [y for _, y in points]))
        return found

    panels = [
        Panel(
            "milliseconds an image",
            lines(lambda row: 1e3 * float(np.median(row["seconds"]))),
        ),
        Panel("calls of the large model", lines(lambda row: row["calls"])),
    ]
    return plot_panels(panels, "", "Frechet distance")
