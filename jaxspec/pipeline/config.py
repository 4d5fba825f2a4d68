"""Generation settings of a pipeline."""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from jaxspec.core.diffusion import Solver
from jaxspec.core.noise import check_seed
from jaxspec.core.numbers import whole
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.core.unmasking import SHAPES
from jaxspec.errors import ConfigError
from jaxspec.masked.policies.named import check_policy
from jaxspec.masked.policy import Policy
from jaxspec.speculative.verify import Coupled, Verifier


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of a generation; checked when they are made.

    Attributes:
      seed: seed of the noise; sequence `i` has the key `fold_in(key(seed), i)`.
      temperature: sampling temperature; 0 is greedy.
      top_k: number of tokens kept; 0 keeps all.
      top_p: probability mass kept; 1 keeps all tokens.
      cfg_scale: classifier-free guidance scale; 1 computes no unconditional branch.
      cfg_interval: last guided step, see `Sampling.create`; -1 guides every token.
      max_new_tokens: tokens of each sequence; None for as many as the model makes.
      stop_tokens: tokens that end a sequence, as its last one.
      batch_size: largest number of sequences in a batch.
      verifier: acceptance criterion of drafts.
      steps: number of steps of a masked model; None for 12, for 64 of MAR, and for as
        many as there are tokens of text.
      policy: rule of the tokens of a masked model that are known after a step: a name,
        see `named_policy`, or a policy without parameters; None for "confidence", and
        for "confidence-0" of text.
      schedule: share of the tokens of a masked model that stay masked over its steps,
        one of `core.unmasking.SHAPES`; None for "cosine", and for "linear" of text.
      head_steps: numbers of steps of its diffusion head's chains, in the first step and
        in the last one, see `MARGenerator`; None for 100 in all.
      solver: solver of these chains, see `DiffusionSchedule`.
      cache_stages: number of cache sizes, see `EngineConfig`.
      attention: implementation of attention over a cache, see `Transformer`.

    Raises:
      ConfigError: a value is out of range.
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 2.0
    cfg_interval: int = -1
    max_new_tokens: int | None = None
    stop_tokens: tuple[int, ...] = ()
    batch_size: int = 8
    verifier: Verifier = Coupled()
    steps: int | None = None
    head_steps: tuple[int, int] | int | None = None
    solver: Solver = "ancestral"
    policy: str | Policy | None = None
    schedule: str | None = None
    cache_stages: int = 1
    attention: str = "xla"

    def __post_init__(self):
        counts = {"cache_stages": self.cache_stages, "batch_size": self.batch_size}
        for name in ("max_new_tokens", "steps"):
            if getattr(self, name) is not None:
                counts[name] = getattr(self, name)
        for name, value in counts.items():
            whole(name, value)
        if self.policy is not None:
            check_policy(self.policy)
        if self.schedule is not None and self.schedule not in tuple(SHAPES):
            raise ConfigError(
                f"schedule={self.schedule!r}; choose one of {', '.join(SHAPES)}"
            )
        if self.solver not in get_args(Solver):
            raise ConfigError(f"solver={self.solver!r}; choose ancestral or ddim")
        if self.head_steps is not None:
            both = whole("head_steps", np.atleast_1d(self.head_steps), 2).tolist()
            if len(both) > 2:
                raise ConfigError(
                    f"head_steps={self.head_steps!r}; give a number, or two: of the "
                    "first step and of the last"
                )
            object.__setattr__(self, "head_steps", (both[0], both[-1]))
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        self.stopping(1)
        check_seed(self.seed)
        self.sampling()

    def stopping(self, max_new_tokens: int) -> StoppingCriteria:
        """The stopping criteria of all sequences, of at most `max_new_tokens`."""
        return StoppingCriteria.create(
            max_new_tokens=max_new_tokens, stop_tokens=self.stop_tokens
        )

    def sampling(self, batch: int | None = None) -> Sampling:
        """The sampling settings, of `batch` sequences or of all."""
        return Sampling.create(
            batch,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            cfg_scale=self.cfg_scale,
            cfg_interval=self.cfg_interval,
        )
