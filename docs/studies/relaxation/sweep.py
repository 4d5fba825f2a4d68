"""Sweep over lossy verifiers, with one row of numbers for each setting."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from docs.studies.relaxation.equal_acceptance import equal_acceptance
from docs.studies.relaxation.positions import model_positions, toy_positions
from jaxspec.errors import ConfigError
from jaxspec.evaluate.relaxation.distances import total_variation, wasserstein
from jaxspec.evaluate.relaxation.drafts import coupled_drafts, independent_drafts
from jaxspec.evaluate.relaxation.outcomes import coupled_outcome, independent_outcome
from jaxspec.evaluate.relaxation.positions import Position
from jaxspec.evaluate.tables import environment
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.embedded import CLASSES
from jaxspec.pipeline.verifiers import verifier_spec
from jaxspec.speculative.verify import Coupled, CoupledRelaxed, Lantern, Rejection

Cell = tuple[str, Any, str]

NEIGHBORS = (5, 10, 50)
MASSES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
FACTORS = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
RELAXED_MASSES, RELAXED_FACTORS = (0.05, 0.1, 0.2, 0.5), (2.0, 5.0, 10.0)
# In units of the median distance between a codebook entry and its nearest neighbor.
RADII = (0.75, 1.0, 1.25, 1.5, 2.0, 2.5)


def relaxed_verifiers(
    positions: Sequence[Position],
) -> dict[str, list[CoupledRelaxed]]:
    """Curves of `CoupledRelaxed` by name: sweeps of budget, `lam` or radius.

    Radii are swept with a budget of 1 and all neighbors of the table.
    """
    nearest = [np.asarray(x.neighbors.distances[:, 0]) for x in positions]
    unit, max_neighbors = float(np.median(nearest)), positions[0].neighbors.most
    curves = {
        "coupled-relaxed, radius": [
            CoupledRelaxed(max_neighbors, 1.0, radius=round(x * unit, 3)) for x in RADII
        ]
    }
    for k in NEIGHBORS:
        curves[f"coupled-relaxed, budget, k={k}"] = [
            CoupledRelaxed(k, x) for x in RELAXED_MASSES
        ]
        curves[f"coupled-relaxed, lam, k={k}"] = [
            CoupledRelaxed(k, lam=x) for x in RELAXED_FACTORS
        ]
    return curves


def lantern_verifiers(max_neighbors: int) -> dict[str, list[Lantern]]:
    """Curves of LANTERN and LANTERN++ by name.

    Args:
      max_neighbors: Number of neighbors in the table, which is swept too. The optimal
        residual costs `V k` per draft and is omitted for many neighbors.
    """
    curves = {}
    for k in sorted({*NEIGHBORS, max_neighbors}):
        for residual in ("published", "optimal") if k < 50 else ("published",):
            curves[f"LANTERN, {residual}, k={k}"] = [
                Lantern(k, delta=x, residual=residual) for x in MASSES
            ]
            curves[f"LANTERN++, {residual}, k={k}"] = [
                Lantern(k, lam=x, residual=residual) for x in FACTORS
            ]
    return curves


def cells(positions: Sequence[Position]) -> list[Cell]:
    """All measurements: curve, verifier, and "independent" or "coupled" children."""
    curves = {
        "lossless": [Rejection(), Coupled()],
        **relaxed_verifiers(positions),
        **lantern_verifiers(positions[0].neighbors.most),
    }
    return [
        (curve, verifier, drafts)
        for curve, verifiers in curves.items()
        for verifier in verifiers
        for drafts in ("independent", "coupled")
        if drafts == "independent" or isinstance(verifier, (Coupled, CoupledRelaxed))
    ]


def measure_setting(
    name: str,
    positions: Sequence[Position],
    children: int,
    measurements: Sequence[Cell],
    *,
    drafts: int = 4096,
    samples: int = 1 << 19,
    seed: int = 0,
    metric: bool = True,
    progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Measures verifiers in one setting, as means over positions.

    Args:
      name: Name of the setting.
      positions: Positions.
      children: Number of children `W`.
      measurements: Cells to measure, see `cells`.
      drafts: Number of drafts of independent children, for more than one child; shared
        by all verifiers.
      samples: Number of noise samples for coupled children, for more than one child.
      seed: Seed of drafts and noise.
      metric: Whether the Wasserstein-1 distance is computed.
      progress: Callback after each position of each row.

    Returns:
      One row per measurement.
    """
    means = np.zeros((len(measurements), 4))
    for i, position in enumerate(positions):
        p, q = position.p, position.q
        independent = independent_drafts(q, children, drafts, (seed, i, 1))
        coupled = coupled_drafts(p, q, children, samples, (seed, i, 2))
        for j, (_, verifier, kind) in enumerate(measurements):
            if kind == "independent":
                outcome = independent_outcome(verifier, position, independent)
            else:
                outcome = coupled_outcome(verifier, position, coupled)
            tv = total_variation(outcome.output, p)
            w1 = wasserstein(outcome.output, p, position.codebook) if metric else np.nan
            shift = np.nan if outcome.shift is None else outcome.shift
            means[j] += np.array([outcome.acceptance, tv, w1, shift]) / len(positions)
            progress()
    rows = []
    for (curve, verifier, kind), values in zip(measurements, means, strict=True):
        numbers = [float(x) if np.isfinite(x) else None for x in values]
        row = {"setting": name, "children": children, "curve": curve}
        row |= {"verifier": verifier_spec(verifier), "drafts": kind}
        row |= dict(zip(("acceptance", "tv", "w1", "shift"), numbers, strict=True))
        rows.append(row)
    return rows


def run_relaxation(
    *,
    checkpoint: str | None = None,
    toys: int = 8,
    images: int = 16,
    drafts: int = 4096,
    samples: int = 1 << 19,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs the sweep for a bundle folder, see `measure_relaxation`.

    Raises:
      ConfigError: `drafts` is not a power of 2.
    """
    if drafts.bit_count() != 1:
        raise ConfigError(f"--drafts {drafts} must be a power of 2")
    return measure_relaxation(
        load_bundle(checkpoint or CLASSES),
        toys=toys,
        images=images,
        drafts=drafts,
        samples=samples,
        seed=seed,
    )


def measure_relaxation(
    bundle: Bundle,
    *,
    toys: int = 8,
    images: int = 16,
    children: Sequence[int] = (1, 3),
    drafts: int = 4096,
    samples: int = 1 << 19,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs the whole sweep: two synthetic settings, and the positions of a model.

    Args:
      bundle: Models, whose target, drafter and codebook form one setting.
      toys: Number of positions of each synthetic setting.
      images: Number of positions of the models, one in each image.
      children: Numbers of drafted children.
      drafts: Number of drafts, see `measure_setting`.
      samples: Number of noise samples, see `measure_setting`.
      seed: Seed of images, drafts and noise.

    Returns:
      Report for `relaxation_markdown` and `relaxation_plot`, without "command".
    """
    settings = {
        "toy, far drafter": toy_positions(toys, near=False),
        "toy, near drafter": toy_positions(toys, near=True),
        bundle.name: model_positions(bundle, images, seed=seed),
    }
    total = sum(len(x) * len(cells(x)) for x in settings.values()) * len(children)
    rows, metadata = [], {}
    with tqdm(total=total, desc="bench", unit="outcome") as bar:
        for name, positions in settings.items():
            overlap = [np.minimum(x.p, x.q).sum() for x in positions]
            metadata[name] = {
                "positions": len(positions),
                "vocab_size": positions[0].codebook.shape[0],
                "dimensions": positions[0].codebook.shape[1],
                "overlap": float(np.mean(overlap)),
            }
            for count in children:
                rows += measure_setting(
                    name,
                    positions,
                    count,
                    cells(positions),
                    drafts=drafts,
                    samples=samples,
                    seed=seed,
                    metric=name != bundle.name,
                    progress=bar.update,
                )
    return {
        "checkpoint": bundle.name,
        "settings": metadata,
        "drafts": drafts,
        "samples": samples,
        "seed": seed,
        "rows": rows,
        "equal_acceptance": equal_acceptance(rows),
        **environment(),
    }
