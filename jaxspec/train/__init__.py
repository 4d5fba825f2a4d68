"""Trainers of all parts, and the loss of drafters for a loop of one's own."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "Experiment": "jaxspec.train.experiment",
    "TrainingEvent": "jaxspec.train.events",
    "TrainingRun": "jaxspec.train.training_run",
    "drafter_loss": "jaxspec.train.distillation",
    "experiment_for": "jaxspec.train.from_images",
    "load_experiment": "jaxspec.train.experiment",
    "train_all": "jaxspec.train.all_parts",
    "train_part": "jaxspec.train.run",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
