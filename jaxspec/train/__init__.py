"""Trainers of tokenizers, priors, drafters and classifiers."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "Experiment": "jaxspec.train.experiment",
    "TrainingEvent": "jaxspec.train.events",
    "TrainingRun": "jaxspec.train.training_run",
    "experiment_for": "jaxspec.train.from_images",
    "load_experiment": "jaxspec.train.experiment",
    "train_all": "jaxspec.train.all_parts",
    "train_part": "jaxspec.train.run",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
