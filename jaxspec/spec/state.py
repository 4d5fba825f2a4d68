"""What the loop holds fixed, what it carries, and what it returns."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.errors import ConfigError
from jaxspec.spec.cache import KVCache
from jaxspec.spec.draft import Drafter, Selection, extra_rows
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.numbers import whole, within
from jaxspec.spec.sampling import LLAMAGEN_ORDER, Step
from jaxspec.spec.target import Target
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Coupled, Verifier
from jaxspec.typing import Array, BatchKeys, Bool, Int, PyTree


@dataclass(frozen=True)
class Engine:
    """Everything static about a generation; hashable, closed over by `jax.jit`.

    Attributes:
      target: the model that is sped up.
      max_new_tokens: tokens to generate in each row.
      drafter: None decodes plainly, one token a call.
      tree: shape of the drafts, or the bound of trees that grow; the root alone
        without a drafter.
      verifier: how drafts are judged.
      order: processing steps, in order; see `spec.sampling.process_logits`.
      tie_margin: how far apart, at most, the logits of two passes of different widths
        may be, doubled. A decision that such a difference could change (guidance and
        temperature enlarge it, see `spec.sampling.rounding_gain`) is taken again from
        the target's `rescore`, which has one fixed shape: so every tree, drafter and
        batch yields the same tokens, not merely almost always. 0 never asks.
      selection: how the drafter chooses candidates; None is what the verifier asks for.
      cache_stages: number of cache sizes that `generate` goes through. Each stage
        holds an equal share of the tokens more, so that passes do not read slots that
        are filled later. Worth it for large batches whose attention reads the whole
        cache ("xla"); the loop is compiled once a stage.
    """

    target: Target
    max_new_tokens: int
    drafter: Drafter | None = None
    tree: Tree | DynamicTree = Tree.root()
    verifier: Verifier = Coupled()
    order: tuple[Step, ...] = LLAMAGEN_ORDER
    tie_margin: float = 5e-4
    selection: Selection | None = None
    cache_stages: int = 1

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ConfigError(
                f"max_new_tokens={self.max_new_tokens} must be at least 1"
            )
        if self.drafter is None and self.tree.size != 1:
            raise ConfigError("a tree of drafts needs a drafter")
        if not 1 <= self.cache_stages <= self.max_new_tokens:
            raise ConfigError(
                f"cache_stages={self.cache_stages} must be 1 to "
                f"max_new_tokens={self.max_new_tokens}"
            )
        within("tie_margin", self.tie_margin)

    @property
    def path_length(self) -> int:
        """`A`."""
        return self.tree.depth + 1

    @property
    def window(self) -> int:
        """Rows of one verify pass: the tree's nodes and a drafter's extra rows."""
        return self.tree.size + extra_rows(self.drafter, self.tree)

    @property
    def candidates(self) -> Selection:
        """How the drafter chooses candidates."""
        return self.selection or self.verifier.selection


@register_dataclass
@dataclass(frozen=True)
class StoppingCriteria:
    """When each sequence ends.

    Attributes:
      max_new_tokens: int32 [B], largest number of tokens; at least 1.
      stop_tokens: int32 [B, E], tokens that end a sequence and are its last one; -1
        for none.
    """

    max_new_tokens: Int[Array, "B"]
    stop_tokens: Int[Array, "B E"]

    @classmethod
    def create(cls, batch: int, max_new_tokens, stop_tokens=()) -> "StoppingCriteria":
        """Checks criteria given as numbers or as arrays with one entry a sequence.

        Args:
          batch: number of sequences, `B`.
          max_new_tokens: largest number of tokens, for all sequences or for each.
          stop_tokens: tokens that end a sequence; `[E]` for all sequences or `[B, E]`,
            -1 for none.

        Raises:
          ConfigError: `max_new_tokens` is not positive, a stop token is below -1, a
            number is not whole or over 31 bits, or a shape does not fit.
        """
        most = whole("max_new_tokens", max_new_tokens)
        stop = np.atleast_1d(whole("stop_tokens", stop_tokens, -1))
        if most.shape not in ((), (batch,)):
            raise ConfigError(
                f"max_new_tokens has shape {most.shape}; give one number, or one for "
                f"each of {batch} sequences"
            )
        if stop.ndim > 2 or stop.shape[:-1] not in ((), (batch,)):
            raise ConfigError(
                f"stop_tokens has shape {stop.shape}; give [E], or [{batch}, E]"
            )
        most = np.broadcast_to(most, (batch,))
        stop = np.broadcast_to(stop, (batch, stop.shape[-1]))
        return cls(jnp.asarray(most), jnp.asarray(stop))


@register_dataclass
@dataclass(frozen=True)
class Stats:
    """Counters kept on the device and fetched once.

    Attributes:
      calls: int32 [B], target calls of each row: its prefill, and each round in which
        it was not finished.
      rounds: int32 [], rounds of the whole batch.
      proposed: int32 [B], drafted tokens that were verified: valid nodes of trees.
      rescored: int32 [B], near-ties that were decided again.
      accepted: int32 [B, A], rounds by number of accepted tokens.
      hits: int32 [B, A - 1, W], accepted drafted tokens by depth and rank.
    """

    calls: Int[Array, "B"]
    rounds: Int[Array, ""]
    proposed: Int[Array, "B"]
    rescored: Int[Array, "B"]
    accepted: Int[Array, "B A"]
    hits: Int[Array, "B D W"]


@register_dataclass
@dataclass(frozen=True)
class SpecState:
    """Everything that one round hands to the next.

    Attributes:
      tokens: int32 [B, max_new_tokens + A], generated tokens; garbage beyond `length`.
      length: int32 [B], generated tokens so far.
      start: int32 [B], absolute position of the first generated token.
      cache: the target's keys and values; the last tree lies behind them uncommitted.
      path: int32 [B, A], accepted nodes of the last tree.
      counts: int32 [B], how many of them to commit on entry to the next round.
      drafter: the drafter's state.
      keys: typed keys [B].
      stopping: when rows end.
      done: bool [B], rows that have ended: by their budget or at a stop token.
      stats: counters.
      finite: bool [B], False once a decision met NaN or nothing but -inf.
    """

    tokens: Int[Array, "B T"]
    length: Int[Array, "B"]
    start: Int[Array, "B"]
    cache: KVCache
    path: Int[Array, "B A"]
    counts: Int[Array, "B"]
    drafter: PyTree
    keys: BatchKeys
    stopping: StoppingCriteria
    done: Bool[Array, "B"]
    stats: Stats
    finite: Bool[Array, "B"]


@register_dataclass
@dataclass(frozen=True)
class Generation:
    """The result of `generate`.

    Attributes:
      tokens: int32 [B, max_new_tokens]; -1 beyond a row's length.
      lengths: int32 [B], generated tokens of each row, a stop token included.
      stats: counters of the run.
      finite: bool [B], False if the target ever gave a row NaN or only -inf; its
        tokens mean nothing then.
    """

    tokens: Int[Array, "B T"]
    lengths: Int[Array, "B"]
    stats: Stats
    finite: Bool[Array, "B"]
