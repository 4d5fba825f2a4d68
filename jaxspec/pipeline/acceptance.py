"""Comparison of a drafter's acceptance with the record of its training.

A drafter whose target, feature layers or token ids are not those of its training still
drafts, and its tokens are verified: it only costs time. The record in its checkpoint,
`overlap_1`, makes this visible.
"""

import math
import warnings
from typing import NamedTuple

from jaxspec.drafters.combine.jacobi_mix import JacobiMix
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.generation import GenerationResult
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.speculative.verify import Block, Coupled, Rejection

# Fewest rounds that are compared.
MIN_ROUNDS = 64
# Lowest share of the expected acceptance, near the settings of training and far from
# them. Measured with the embedded drafter, six classes, 128 tokens each (shares of the
# expectation .57): at guidance scales 1 to 3 it reaches 1.02 to 1.18, at 7.5 .54, and
# in greedy decoding at 7.5 .33. With exchanged feature layers it reaches .54 to .68,
# with an `observe` that is off by a node .49, with permuted tokens or random parameters
# at most .13. An anchor one token too early (.83) is not found.
NEAR_SHARE, FAR_SHARE = 0.65, 0.15
# The same with `JacobiMix`, whose share of the target's own scores is accepted whatever
# the drafter is: 1.07 to 1.23, .67 at 7.5, and .51 in greedy decoding; .61 to .75 with
# exchanged feature layers, at most .44 with permuted tokens or random parameters.
MIXED_NEAR_SHARE, MIXED_FAR_SHARE = 0.88, 0.3
# Settings near those of training: guidance, temperature, and top-k (0 for none).
NEAR_SCALES, NEAR_TEMPERATURES, NEAR_TOP_K = (1.0, 3.0), (0.5, 2.0), 10


class FirstDrafts(NamedTuple):
    """Counters of the first drafted token of each round.

    Attributes:
      rounds: number of rounds, over all sequences.
      proposed: number of drafted tokens that were verified, of any depth.
      accepted: number of rounds in which the first choice of depth one was accepted.
    """

    rounds: int
    proposed: int
    accepted: int

    @classmethod
    def of(cls, result: GenerationResult) -> "FirstDrafts":
        """Counters of a generation."""
        return cls(
            int(result.accepted.sum()),
            int(result.proposed.sum()),
            int(result.hits[:, 0, 0].sum()),
        )


class AcceptanceWarning(UserWarning):
    """The target accepts much less of a drafter's tokens than training measured."""


def expected_acceptance(overlap: float) -> float:
    """Lowest acceptance of one coupled token, for an overlap `sum min(p, q)`.

    `(1 - d) / (1 + d)` with the total variation distance `d = 1 - overlap`
    (Poisson-Gumbel coupling, arXiv 2408.07978).
    """
    return overlap / (2.0 - overlap)


def acceptance_note(
    loaded: LoadedDrafter | None, drafts: FirstDrafts, config: GenerationConfig
) -> str | None:
    """Sentence on an acceptance far below that of the training; None if there is none.

    The first drafted token of each round is counted. Two standard errors are granted.

    Args:
      loaded: drafter; one without a record of its training is never named.
      drafts: counters of a generation.
      config: its settings. With verifiers whose first child is no sample, such as
        `GreedySet`, nothing is named: the expectation was measured with `Coupled`.
    """
    if not isinstance(config.verifier, Coupled | Rejection | Block):
        return None
    rounds = drafts.rounds
    if loaded is None or loaded.overlap is None or rounds < MIN_ROUNDS:
        return None
    if not drafts.proposed:
        return None
    actual = drafts.accepted / rounds
    expected = expected_acceptance(loaded.overlap)
    shares = NEAR_SHARE, FAR_SHARE
    if isinstance(loaded.drafter, JacobiMix):
        shares = MIXED_NEAR_SHARE, MIXED_FAR_SHARE
    share = shares[not _is_near(config)]
    error = math.sqrt(actual * (1 - actual) / rounds)
    if actual + 2 * error >= share * expected:
        return None
    return (
        f"the target accepted {actual:.0%} of the first tokens that the drafter "
        f"'{loaded.name}' proposed in {rounds} rounds; its training measured "
        f"{loaded.overlap:.0%} overlap, which gives {expected:.0%} or more. Likely "
        "causes, in this order: the target's weights are not those that it was trained "
        "for; its feature layers are those of another model; its token ids are in "
        "another order; guidance, temperature or filters are far from its training. "
        "The output stays right with a lossless verifier; see docs/drafters.md"
    )


def warn_of_low_acceptance(
    loaded: LoadedDrafter | None,
    result: GenerationResult,
    config: GenerationConfig,
    warned: list[str],
) -> None:
    """Warns with `AcceptanceWarning`, unless a warning is in `warned`.

    Args:
      loaded: drafter.
      result: counters of a generation.
      config: its settings.
      warned: warnings up to now, to which a new one is added.
    """
    drafts = FirstDrafts.of(result)
    if not warned and (note := acceptance_note(loaded, drafts, config)):
        warned.append(note)
        warnings.warn(note, AcceptanceWarning, stacklevel=3)


def _is_near(config: GenerationConfig) -> bool:
    """Whether settings are near those that drafters are trained for."""
    low, high = NEAR_SCALES
    cold, hot = NEAR_TEMPERATURES
    filtered = 0 < config.top_k < NEAR_TOP_K or config.top_p < 0.5
    return (
        low <= config.cfg_scale <= high
        and cold <= config.temperature <= hot
        and not filtered
    )
