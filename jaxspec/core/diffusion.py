"""Gaussian diffusion: schedules with fewer steps, and steps of a chain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.typing import Array, Float, Int

Solver = Literal["ancestral", "ddim"]
# Largest noise of one step of the cosine schedule.
_MOST_BETA = 0.999


def cosine_betas(steps: int) -> np.ndarray:
    """Variances, float64 [steps], of the cosine schedule (arXiv 2102.09672)."""

    def kept(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array(
        [min(1 - kept((i + 1) / steps) / kept(i / steps), _MOST_BETA)
         for i in range(steps)]
    )  # fmt: skip


def spaced_steps(steps: int, count: int) -> tuple[int, ...]:
    """`count` evenly spaced steps of a diffusion, the first and the last among them.

    Raises:
      ConfigError: `count` is not 2 to `steps`.
    """
    if not 2 <= count <= steps:
        raise ConfigError(f"{count} steps of a diffusion of {steps}; choose 2 to all")
    stride = (steps - 1) / (count - 1)
    # Added up as in the published samplers, so that halves round in the same way.
    place, chosen = 0.0, []
    for _ in range(count):
        chosen.append(round(place))
        place += stride
    return tuple(chosen)


@dataclass(frozen=True)
class DiffusionSchedule:
    """A diffusion of fewer steps than the model was trained for; static and hashable.

    Its coefficients are NumPy arrays [count], by step; step 0 is the last of a chain.

    Attributes:
      trained: number of steps that the model was trained for.
      count: number of steps of a chain.
      solver: "ancestral" (arXiv 2006.11239, with variances that the model interpolates,
        arXiv 2102.09672), or "ddim", without noise (arXiv 2010.02502).

    Raises:
      ConfigError: a number of steps or the solver is impossible.
    """

    trained: int = 1000
    count: int = 100
    solver: Solver = "ancestral"

    def __post_init__(self):
        spaced_steps(self.trained, self.count)
        if self.solver not in (known := get_args(Solver)):
            raise ConfigError(
                f"solver={self.solver!r}; choose one of {', '.join(known)}"
            )

    @cached_property
    def times(self) -> np.ndarray:
        """Step of the trained diffusion that each step is, int32."""
        return np.array(spaced_steps(self.trained, self.count), np.int32)

    @cached_property
    def kept(self) -> np.ndarray:
        """Fraction of the signal's variance that is left after each step."""
        return np.cumprod(1 - cosine_betas(self.trained))[self.times]

    @cached_property
    def coefficients(self) -> dict[str, np.ndarray]:
        """Coefficients of each step, float32; see `posterior`."""
        kept, before = self.kept, np.append(1.0, self.kept[:-1])
        betas = 1 - kept / before
        variance = betas * (1 - before) / (1 - kept)
        # The variance of the last step is 0; that of the one before stands for it.
        least = np.append(variance[1:2], variance[1:])
        values = {
            "signal": np.sqrt(1 / kept),
            "noise": np.sqrt(1 / kept - 1),
            "from_signal": betas * np.sqrt(before) / (1 - kept),
            "from_state": (1 - before) * np.sqrt(1 - betas) / (1 - kept),
            "least": np.log(np.maximum(least, 1e-20)),
            "most": np.log(betas),
            "before": np.sqrt(before),
            "noise_before": np.sqrt(1 - before),
        }
        return {name: x.astype(np.float32) for name, x in values.items()}


Coefficients = dict[str, Float[Array, "..."]]


def step_coefficients(
    schedules: Sequence[DiffusionSchedule], which: Int[Array, "..."], step: Array
) -> Coefficients:
    """Coefficients of one step of chains that may have different numbers of steps.

    Args:
      schedules: schedules; the shorter ones hold nothing beyond their last step.
      which: schedule of each chain.
      step: step of all chains, or of each.

    Returns:
      The entries of `DiffusionSchedule.coefficients` and "time", of the shape of
      `which`.
    """
    most = max(schedule.count for schedule in schedules)

    def stacked(values):
        return jnp.asarray(np.stack([np.pad(x, (0, most - len(x))) for x in values]))

    names = schedules[0].coefficients
    tables = {k: stacked([s.coefficients[k] for s in schedules]) for k in names}
    tables["time"] = stacked([schedule.times for schedule in schedules])
    return {name: table[which, step] for name, table in tables.items()}


def noised(
    schedule: DiffusionSchedule,
    latents: Float[Array, "... C"],
    step: Int[Array, "..."],
    noise: Float[Array, "... C"],
) -> Float[Array, "... C"]:
    """Latents after the diffusion's steps up to `step`, float32."""
    kept = jnp.asarray(schedule.kept, jnp.float32)[step][..., None]
    return jnp.sqrt(kept) * latents + jnp.sqrt(1 - kept) * noise


def posterior(
    coefficients: Coefficients,
    state: Float[Array, "... C"],
    outputs: Float[Array, "... E"],
    solver: Solver = "ancestral",
    bound: float | None = None,
) -> tuple[Float[Array, "... C"], Float[Array, "... C"]]:
    """Mean and standard deviation of the next state of a chain, float32.

    Args:
      coefficients: coefficients of the step, see `step_coefficients`.
      state: state before the step.
      outputs: predictions of the model, [..., 2 C]: the noise, and the place of the
        logarithm of the variance between the least and the largest possible, -1 to 1.
      solver: solver of the schedule.
      bound: largest absolute value of the signal that the noise is predicted with; None
        for no bound. The first steps of a chain multiply errors of the noise by some
        hundreds, which a bound cuts off (arXiv 2006.11239).

    Returns:
      The mean, and the standard deviation, which no sampler uses at the last step. A
      state after the last step is a sample.
    """
    at = {name: x[..., None] for name, x in coefficients.items()}
    noise, interpolation = jnp.split(outputs.astype(jnp.float32), 2, axis=-1)
    signal = at["signal"] * state - at["noise"] * noise
    if bound is not None:
        signal = jnp.clip(signal, -bound, bound)
        noise = (at["signal"] * state - signal) / at["noise"]
    if solver == "ddim":
        mean = at["before"] * signal + at["noise_before"] * noise
        return mean, jnp.zeros_like(mean)
    interpolation = (interpolation + 1) / 2
    log_variance = interpolation * at["most"] + (1 - interpolation) * at["least"]
    mean = at["from_signal"] * signal + at["from_state"] * state
    return mean, jnp.exp(log_variance / 2)
