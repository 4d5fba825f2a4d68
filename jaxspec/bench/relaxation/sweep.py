"""Which rules are measured, and one row of numbers for each."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxspec import __version__
from jaxspec.bench.relaxation.drafts import independent_drafts, coupled_drafts
from jaxspec.bench.relaxation.equal_acceptance import equal_acceptance
from jaxspec.bench.relaxation.outcomes import (
    independent_outcome,
    coupled_outcome,
    total_variation,
    wasserstein,
)
from jaxspec.bench.relaxation.positions import (
    Position,
    model_positions,
    toy_positions,
)
from jaxspec.bundle import Bundle
from jaxspec.device import device_name
from jaxspec.rules import verifier_spec
from jaxspec.spec.verify import Coupled, CoupledRelaxed, Lantern, Rejection

Cell = tuple[str, Any, str]

NEIGHBORS = (5, 10, 50)
MASSES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
FACTORS = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
OUR_MASSES, OUR_FACTORS = (0.05, 0.1, 0.2, 0.5), (2.0, 5.0, 10.0)
# In units of the median distance between a code and its nearest neighbor.
RADII = (0.75, 1.0, 1.25, 1.5, 2.0, 2.5)


def relaxed_verifiers(positions: Sequence[Position]) -> dict[str, list[CoupledRelaxed]]:
    """Curves of our rule: mass, factor or radius swept, by name.

    Radii are swept without a limit of mass, over as many neighbors as the tables have.
    """
    nearest = [np.asarray(x.neighbors.distances[:, 0]) for x in positions]
    unit, most = float(np.median(nearest)), positions[0].neighbors.most
    wide = [CoupledRelaxed(most, 1.0, radius=round(r * unit, 3)) for r in RADII]
    curves = {"ours, radius": wide}
    for k in NEIGHBORS:
        curves[f"ours, budget, k={k}"] = [CoupledRelaxed(k, x) for x in OUR_MASSES]
        curves[f"ours, lam, k={k}"] = [CoupledRelaxed(k, lam=x) for x in OUR_FACTORS]
    return curves


def lantern_verifiers(most: int) -> dict[str, list[Lantern]]:
    """Curves of LANTERN and LANTERN++, by name.

    Args:
      most: neighbors that the tables serve; tested too. The optimal residual costs
        `V k` for each draft and is not option_values for with many neighbors.
    """
    curves = {}
    for k in sorted({*NEIGHBORS, most}):
        for residual in ("published", "optimal") if k < 50 else ("published",):
            curves[f"LANTERN, {residual}, k={k}"] = [
                Lantern(k, delta=x, residual=residual) for x in MASSES
            ]
            curves[f"LANTERN++, {residual}, k={k}"] = [
                Lantern(k, lam=x, residual=residual) for x in FACTORS
            ]
    return curves


def cells(positions: Sequence[Position]) -> list[Cell]:
    """What is measured: curve, rule, and whether children are "independent" or "coupled"."""
    lossless = {"lossless": [Rejection(), Coupled()]}
    curves = {
        **lossless,
        **relaxed_verifiers(positions),
        **lantern_verifiers(positions[0].neighbors.most),
    }
    return [
        (curve, verifier, how)
        for curve, rules in curves.items()
        for verifier in rules
        for how in ("independent", "coupled")
        if how == "independent" or isinstance(verifier, (Coupled, CoupledRelaxed))
    ]


def measure_setting(
    name: str,
    positions: Sequence[Position],
    children: int,
    todo: Sequence[Cell],
    *,
    drafts: int = 4096,
    samples: int = 1 << 19,
    seed: int = 0,
    metric: bool = True,
    progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """One row for each of `todo`, means over positions.

    Args:
      name: of the setting.
      positions: where rules are compared.
      children: `W`.
      todo: see `cells`.
      drafts: of more than one child, drawn from `q`; the same for all rules.
      samples: of the noise, for more than one child ranked with it.
      seed: of both.
      metric: compute the Wasserstein-1 distance.
      progress: called after each position of each row.
    """
    found = np.zeros((len(todo), 4))
    for i, position in enumerate(positions):
        p, q = position.p, position.q
        independent = independent_drafts(q, children, drafts, (seed, i, 1))
        coupled = coupled_drafts(p, q, children, samples, (seed, i, 2))
        for j, (_, verifier, how) in enumerate(todo):
            if how == "independent":
                outcome = independent_outcome(verifier, position, independent)
            else:
                outcome = coupled_outcome(verifier, position, coupled)
            tv = total_variation(outcome.output, p)
            w1 = wasserstein(outcome.output, p, position.codebook) if metric else np.nan
            shift = np.nan if outcome.shift is None else outcome.shift
            found[j] += np.array([outcome.acceptance, tv, w1, shift]) / len(positions)
            progress()
    rows = []
    for (curve, verifier, how), values in zip(todo, found, strict=True):
        numbers = [float(x) if np.isfinite(x) else None for x in values]
        row = {"setting": name, "children": children, "curve": curve}
        row |= {"verifier": verifier_spec(verifier), "drafts": how}
        row |= dict(zip(("acceptance", "tv", "w1", "shift"), numbers, strict=True))
        rows.append(row)
    return rows


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
    """All that `relaxation_markdown` and `relaxation_plot` show, but for the command.

    Args:
      bundle: models; its target, drafter and codebook are one of the settings.
      toys: positions of each toy setting.
      images: positions of the bundle, one in each image.
      children: drafted children to measure with.
      drafts: see `measure_setting`.
      samples: see `measure_setting`.
      seed: of images, drafts and noise.
    """
    settings = {
        "toy, far drafter": toy_positions(toys, near=False),
        "toy, near drafter": toy_positions(toys, near=True),
        bundle.name: model_positions(bundle, images, seed=seed),
    }
    laws = sum(len(x) * len(cells(x)) for x in settings.values()) * len(children)
    rows, metadata = [], {}
    with tqdm(total=laws, desc="bench", unit="law") as bar:
        for name, positions in settings.items():
            overlap = [np.minimum(x.p, x.q).sum() for x in positions]
            metadata[name] = {
                "positions": len(positions),
                "codes": positions[0].codebook.shape[0],
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
        "device": device_name(),
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
    }
