"""Observers of every training that the command line starts."""

from pathlib import Path

from jaxspec.data.dataset import Sources
from jaxspec.data.image_tokens import Sequences
from jaxspec.pipeline.bundle import load_tokenizer
from jaxspec.pipeline.orders import in_order_of
from jaxspec.train.events import Observer
from jaxspec.train.experiment import Experiment
from jaxspec.train.monitor.curves import write_curves
from jaxspec.train.monitor.entropy import EntropyWarning
from jaxspec.train.monitor.samples import prior_samples, reconstructions
from jaxspec.train.monitor.tensorboard import tensorboard_observer


def default_observers(
    experiment: Experiment,
    part: str,
    images: Sources | None,
    heldout: Sequences | None,
    bundle: Path,
) -> tuple[Observer, ...]:
    """Curves, samples, TensorBoard if it is installed, and warnings.

    Args:
      experiment: configurations of the parts.
      part: trained part.
      images: training images and held-out images; None for text.
      heldout: held-out sequences of a prior.
      bundle: folder of the parts trained before.
    """
    observers: list[Observer] = [write_curves]
    board = tensorboard_observer()
    if board is not None:
        observers.append(board)
    if part == "tokenizer" and images is not None:
        observers.append(reconstructions(experiment, images[1]))
    if part == "prior" and experiment.train_prior.objective in (
        "next",
        "any_order",
    ):
        observers.append(EntropyWarning())
        if images is not None and heldout is not None:
            tokenizer = load_tokenizer(bundle / "tokenizer")
            tokenizer = in_order_of(tokenizer, experiment.prior)
            observers.append(prior_samples(experiment, tokenizer, heldout))
    return tuple(observers)
