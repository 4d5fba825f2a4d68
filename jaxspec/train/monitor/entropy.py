"""Warning about targets that memorize their training data."""

import sys
from dataclasses import dataclass

from tqdm import tqdm

from jaxspec.train.events import TrainingEvent

# A calibrated model's entropy equals its held-out loss. Below this share of it, the
# model is sure of what it has memorized.
LEAST_SHARE = 0.7


@dataclass
class EntropyWarning:
    """Observer of a prior that warns once, when its entropy has fallen too low.

    Attributes:
      warned: whether the warning has been printed.
    """

    warned: bool = False

    def __call__(self, event: TrainingEvent) -> None:
        """Compares the entropy of the predictions with the held-out loss."""
        entropy, loss = (event.metrics.get(k) for k in ("entropy", "heldout_loss"))
        if self.warned or entropy is None or loss is None:
            return
        if entropy < LEAST_SHARE * loss:
            self.warned = True
            tqdm.write(
                f"warning: the predictions' entropy is {entropy:.2f} nats a token and "
                f"the held-out loss {loss:.2f}: the model memorizes its training data, "
                "and no drafter can follow what it memorized. Take fewer steps, a "
                "smaller prior, more images, or dropout (--set prior.ffn_dropout=0.1)",
                file=sys.stderr,
            )
