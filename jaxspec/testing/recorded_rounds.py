"""Rounds of a drafter, recorded, with a chosen number of accepted tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.core.noise import Noise, batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import SpecState, Variables
from jaxspec.speculative.target import Target
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import Verdict, Verifier, checked_draft
from jaxspec.speculative.verify.coupled import coupled_choice, longest_match
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Params, PyTree


class PartError(Exception):
    """Error of one function of a drafter or verifier.

    Attributes:
      part: name of the function.
      cause: error that it raised.
    """

    def __init__(self, part: str, cause: Exception):
        super().__init__(f"{part} raises {type(cause).__name__}: {cause}")
        self.part, self.cause = part, cause


def call_part(part: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function; its errors become `PartError`."""
    try:
        return function(*arguments)
    except Exception as error:
        raise PartError(part, error) from error


def _difference(first: PyTree, state: PyTree) -> str:
    """Words on the first array of another shape or dtype; empty if there is none."""
    one, two = (jax.tree_util.tree_leaves_with_path(x) for x in (first, state))
    if jax.tree.structure(first) != jax.tree.structure(state):
        return f"{jax.tree.structure(state)} instead of {jax.tree.structure(first)}"
    for (path, x), (_, y) in zip(one, two, strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            where = jax.tree_util.keystr(path)
            return (
                f"{y.dtype}{list(y.shape)} instead of {x.dtype}{list(x.shape)}"
                f"{f' at {where}' if where else ''}"
            )
    return ""


def _check_state(part: str, before: PyTree, after: PyTree) -> None:
    if difference := _difference(before, after):
        error = TypeError(f"its state is another than that of init: {difference}")
        raise PartError(part, error)


@register_dataclass
@dataclass(frozen=True)
class Round:
    """One round of a drafter.

    Attributes:
      ctx: input of `propose`.
      state: state before the round.
      draft: draft as the drafter returned it.
      proposed: state after `propose`.
      result: input of `observe`; None before it is called.
      observed: state after `observe`.
    """

    ctx: DraftContext
    state: PyTree
    draft: Draft
    proposed: PyTree
    result: RoundResult | None = None
    observed: PyTree = None

    @property
    def counts(self) -> np.ndarray:
        """Number of emitted tokens, int [B]; 0 in finished sequences."""
        assert self.result is not None
        return np.asarray(self.result.counts)

    def row(self, sequence: int) -> dict[str, np.ndarray]:
        """Arrays of the draft of one sequence, by name."""
        names = "tokens", "valid", "log_q", "parents"
        arrays = {name: getattr(self.draft, name) for name in names}
        return {
            name: np.asarray(x)[sequence] for name, x in arrays.items() if x is not None
        }


@dataclass(frozen=True)
class Recorder:
    """Drafter that wraps another one, and returns a `Round` as its state.

    Parameters are `{"drafter": those of the drafter, "junk": bool []}`. With "junk",
    entries that a drafter must not read are replaced: tokens from `ctx.index` on, and
    emitted tokens beyond `counts`.

    Attributes:
      drafter: the drafter.
      vocab_size: size of the vocabulary, `V`.
    """

    drafter: Any
    vocab_size: int

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "with_target_params":
            raise AttributeError(name)
        return getattr(self.drafter, name)

    def init(self, params: Params, ctx: InitContext) -> PyTree:
        """State of the drafter."""
        return call_part("init", self.drafter.init, params["drafter"], ctx)

    def propose(
        self, params: Params, state: PyTree, ctx: DraftContext
    ) -> tuple[Draft, Round]:
        """Draft of the drafter, and the round."""
        arbitrary = jnp.arange(ctx.tokens.shape[1])[None] >= ctx.index[:, None]
        ctx = replace(ctx, tokens=self._junk(params, ctx.tokens, arbitrary))
        out = call_part("propose", self.drafter.propose, params["drafter"], state, ctx)
        if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], Draft)):
            error = TypeError("it returns no pair of a Draft and a state")
            raise PartError("propose", error)
        _check_state("propose", state, out[1])
        return out[0], Round(ctx, state, *out)

    def observe(self, params: Params, state: Round, result: RoundResult) -> Round:
        """The round with its result."""
        arbitrary = jnp.arange(result.tokens.shape[1])[None] >= result.counts[:, None]
        tokens = self._junk(params, result.tokens, arbitrary)
        result = replace(result, tokens=tokens)
        observe, inner = self.drafter.observe, params["drafter"]
        observed = call_part("observe", observe, inner, state.proposed, result)
        _check_state("observe", state.state, observed)
        return replace(state, result=result, observed=observed)

    def _junk(self, params, tokens: Int[Array, "B T"], arbitrary: Bool[Array, "B T"]):
        other = (tokens + 1 + self.vocab_size // 2) % self.vocab_size
        return jnp.where(arbitrary & params["junk"], other, tokens)


@dataclass(frozen=True)
class ChosenLength(Verifier):
    """Verifier that accepts a chosen number of tokens.

    Parameters are `{"most": int32 [B], "next": int32 [B]}`. A sequence with `most` of
    0 or more accepts the first valid path of at most that length, whatever its tokens,
    and continues with `next`, or with the target's sample if that is -1. With `most` of
    -1 it is verified like `Coupled`.
    """

    lossless = False
    token_exact = True

    def verify(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        noise: Noise,
        params: Params = None,
        features: Float[Array, "R N E"] | None = None,
    ) -> Verdict:
        """See `Verifier.verify`."""
        draft, shape = checked_draft(log_p, draft, tree, noise)
        choice, margin = coupled_choice(log_p, shape, noise)
        most, token = params["most"][:, None], params["next"]
        exact = draft.valid & (draft.tokens == shape.gather_parents(choice))
        forced = draft.valid & (shape.depths <= most)
        match = jnp.where(most < 0, exact, forced)
        verdict = longest_match(shape, match, choice, margin)
        given = token >= 0
        return replace(
            verdict,
            next_token=jnp.where(given, token, verdict.next_token),
            margin=jnp.where(given[:, None], jnp.inf, verdict.margin),
        )


@dataclass(frozen=True)
class Run:
    """Recorded rounds of a batch.

    Attributes:
      rounds: rounds.
      starts: int [rounds, B], number of tokens of each sequence before each round.
      tokens: int32 [B, T], generated tokens, -1 beyond the length of a sequence.
    """

    rounds: list[Round]
    starts: np.ndarray
    tokens: np.ndarray

    def drafts(self, sequence: int) -> dict[int, tuple[int, dict[str, np.ndarray]]]:
        """Drafts of a sequence while it was not done, with the number of their round.

        Keys are the numbers of tokens before the rounds.
        """
        found = {}
        for i, each in enumerate(self.rounds):
            if each.counts[sequence]:
                found[int(self.starts[i, sequence])] = i, each.row(sequence)
        return found


@dataclass
class Rounds:
    """Program that runs a drafter on a target, compiled once.

    Attributes:
      drafter: drafter that is examined.
      params: its parameters, joined with those of the target that it reads.
      target: target model.
      target_params: parameters of the target.
      prompt: prompts of `B` sequences.
      tree: draft tree.
      length: number of tokens; the last sequence ends at half of it.
      sampling: sampling settings of the sequences.
      seed: seed of the keys.
    """

    drafter: Any
    params: Params
    target: Target
    target_params: Params
    prompt: PyTree
    tree: Tree | DynamicTree
    length: int
    sampling: Sampling
    seed: int

    @property
    def batch(self) -> int:
        """Number of sequences, `B`."""
        return jax.tree.leaves(self.prompt)[0].shape[0]

    @cached_property
    def engine(self) -> Engine:
        """Engine that records its rounds."""
        return Engine(
            self.target,
            self.length,
            Recorder(self.drafter, self.target.vocab_size),
            self.tree,
            ChosenLength(),
            order=("temperature",),
            tie_margin=0.0,  # all runs are the same program
        )

    @cached_property
    def _init(self):
        return jax.jit(self.engine.init)

    @cached_property
    def _step(self):
        return jax.jit(self.engine.step)

    @property
    def keys(self) -> BatchKeys:
        """Keys of the sequences."""
        return batch_keys(self.seed, self.batch)

    def variables(self, most: Any, token: Any, junk: bool = False) -> Variables:
        """Variables of one round, see `ChosenLength`."""
        verifier = {"most": jnp.int32(most), "next": jnp.int32(token)}
        drafter = {"drafter": self.params, "junk": jnp.asarray(junk)}
        return Variables(self.target_params, drafter, verifier)

    def start(self, prompt: PyTree = None, keys: BatchKeys | None = None) -> SpecState:
        """First state; also for `jax.eval_shape`."""
        limits = np.full(self.batch, self.length)
        limits[-1] = max(self.length // 2, 2)
        none = np.full(self.batch, -1)
        return self._init(
            self.variables(none, none),
            self.prompt if prompt is None else prompt,
            sampling=self.sampling,
            keys=self.keys if keys is None else keys,
            stopping=StoppingCriteria.create(self.batch, max_new_tokens=limits),
        )

    def abstract(self) -> Round:
        """Shapes of a round, without computation."""
        none = np.full(self.batch, -1)
        return jax.eval_shape(
            lambda: self.engine.step(self.variables(none, none), self.start()).drafter
        )

    def run(
        self,
        most: Callable[[int], Any] | None = None,
        given: np.ndarray | None = None,
        *,
        junk: bool = False,
        prompt: PyTree = None,
        keys: BatchKeys | None = None,
    ) -> Run:
        """Runs all rounds.

        Args:
          most: function from the number of a round to accepted tokens, int or [B]; None
            for coupled verification.
          given: int32 [B, T], tokens to continue with; None for the target's samples.
          junk: whether arbitrary entries of inputs are replaced, see `Recorder`.
          prompt: other prompts.
          keys: other keys.
        """
        state = self.start(prompt, keys)
        none, rounds, starts = np.full(self.batch, -1), [], []
        while not bool(state.done.all()):
            start = np.asarray(state.length)
            limit = (
                none
                if most is None
                else np.broadcast_to(most(len(rounds)), start.shape)
            )
            token = none
            if given is not None:
                last = given.shape[1] - 1
                token = given[np.arange(self.batch), np.minimum(start, last)]
            step = self._step(self.variables(limit, token, junk), state)
            rounds.append(step.drafter)
            starts.append(start)
            state = replace(step, drafter=step.drafter.observed)
        return Run(
            rounds, np.array(starts), np.asarray(self.engine.result(state).tokens)
        )
