"""Events of a training, for callbacks: metrics, and parameters to try."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxspec.typing import Params


@dataclass(frozen=True)
class TrainingEvent:
    """Metrics of one step; at evaluations also the parameters.

    Attributes:
      part: name of the trained part.
      workdir: folder of the part, for files of callbacks.
      step: number of steps taken.
      steps: number of steps of the training.
      seconds: time of the training up to now, in seconds.
      metrics: values that `metrics.jsonl` gets for this step.
      params: averaged parameters at an evaluation on held-out data; None at other
        steps.
    """

    part: str
    workdir: Path
    step: int
    steps: int
    seconds: float
    metrics: Mapping[str, float]
    params: Params | None = None


Observer = Callable[[TrainingEvent], object]


def notify(observers: Sequence[Observer], event: TrainingEvent) -> None:
    """Calls every observer with an event."""
    for observer in observers:
        observer(event)
