"""What the loop holds fixed, what it carries, and what it returns."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.errors import ConfigError
from jaxspec.spec.cache import KVCache
from jaxspec.spec.draft import Drafter, Selection, extra_rows
from jaxspec.spec.envelopes import Envelope
from jaxspec.spec.numbers import whole, within
from jaxspec.spec.sampling import LLAMAGEN_ORDER, Step
from jaxspec.spec.target import Target
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Coupled, Rule
from jaxspec.typing import Array, Bool, Int, PyTree, RowKeys


@dataclass(frozen=True)
class Engine:
    """Everything static about a generation; hashable, closed over by `jax.jit`.

    Attributes:
      target: the model that is sped up.
      max_tokens: tokens to generate in each row.
      drafter: None decodes plainly, one token a call.
      tree: shape of the drafts, or the bound of trees that grow; the root alone
        without a drafter.
      rule: how drafts are judged.
      order: processing steps, in order; see `spec.sampling.process`.
      tie_margin: how far apart, at most, the logits of two passes of different widths
        may be, doubled. A decision that such a difference could change (guidance and
        temperature enlarge it, see `spec.sampling.amplification`) is taken again from
        the target's `rescore`, which has one fixed shape: so every tree, drafter and
        batch yields the same tokens, not merely almost always. 0 never asks.
      selection: how the drafter chooses candidates; None is what the rule asks for.
      phases: `generate` starts with a cache for this part of the tokens, and makes it
        larger so many times less one: passes read what may be filled and not what will
        be. Worth it where rows are many and attention reads its whole cache ("xla");
        the loop is compiled once a phase.
    """

    target: Target
    max_tokens: int
    drafter: Drafter | None = None
    tree: Tree | Envelope = Tree.root()
    rule: Rule = Coupled()
    order: tuple[Step, ...] = LLAMAGEN_ORDER
    tie_margin: float = 5e-4
    selection: Selection | None = None
    phases: int = 1

    def __post_init__(self):
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens} must be at least 1")
        if self.drafter is None and self.tree.size != 1:
            raise ConfigError("a tree of drafts needs a drafter")
        if not 1 <= self.phases <= self.max_tokens:
            raise ConfigError(
                f"phases={self.phases} must be 1 to max_tokens={self.max_tokens}"
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
        return self.selection or self.rule.selection


@register_dataclass
@dataclass(frozen=True)
class Limits:
    """When rows end.

    Attributes:
      budget: int32 [B], most tokens of each row; at least 1.
      stop: int32 [B, E], tokens that end a row, itself included in the output; -1 for
        none.
    """

    budget: Int[Array, "B"]
    stop: Int[Array, "B E"]


def make_limits(rows: int, budget, stop=()) -> Limits:
    """Checks limits given as numbers or as arrays of `rows`.

    Args:
      rows: `B`.
      budget: most tokens of a row, or of each.
      stop: tokens that end a row; `[E]` for all rows or `[B, E]`, -1 for none.

    Raises:
      ConfigError: a budget is not positive, a stop token is below -1, a number is not
        whole or over 31 bits, or a shape does not fit.
    """
    budget = whole("budget", budget)
    stop = np.atleast_1d(whole("stop", stop, -1))
    if budget.shape not in ((), (rows,)):
        raise ConfigError(f"budget has shape {budget.shape}; give one, or one a row")
    if stop.ndim > 2 or stop.shape[:-1] not in ((), (rows,)):
        raise ConfigError(f"stop has shape {stop.shape}; give [E], or [{rows}, E]")
    budget = np.broadcast_to(budget, (rows,))
    stop = np.broadcast_to(stop, (rows, stop.shape[-1]))
    return Limits(jnp.asarray(budget), jnp.asarray(stop))


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
      tokens: int32 [B, max_tokens + A], generated tokens; garbage beyond `length`.
      length: int32 [B], generated tokens so far.
      start: int32 [B], absolute position of the first generated token.
      cache: the target's keys and values; the last tree lies behind them uncommitted.
      path: int32 [B, A], accepted nodes of the last tree.
      counts: int32 [B], how many of them to commit on entry to the next round.
      drafter: the drafter's state.
      keys: typed keys [B].
      limits: when rows end.
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
    keys: RowKeys
    limits: Limits
    done: Bool[Array, "B"]
    stats: Stats
    finite: Bool[Array, "B"]


@register_dataclass
@dataclass(frozen=True)
class Generation:
    """The result of `generate`.

    Attributes:
      tokens: int32 [B, max_tokens]; -1 beyond a row's length.
      lengths: int32 [B], generated tokens of each row, a stop token included.
      stats: counters of the run.
      finite: bool [B], False if the target ever gave a row NaN or only -inf; its
        tokens mean nothing then.
    """

    tokens: Int[Array, "B T"]
    lengths: Int[Array, "B"]
    stats: Stats
    finite: Bool[Array, "B"]
