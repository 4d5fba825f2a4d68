"""Checks of a drafter of one's own against the contract of `Drafter`.

With a lossless verifier a broken drafter costs speed and raises no error; with one that
samples it may bias the output. The checks run rounds with a chosen number of accepted
tokens, and compare drafts that must agree.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Drafter, Selection, join_target_params
from jaxspec.speculative.target import Target
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import DETERMINISTIC
from jaxspec.testing.draft_faults import draft_faults
from jaxspec.testing.recorded_rounds import PartError, Round, Rounds, Run
from jaxspec.testing.sibling_law import Siblings, ranking_fault, sampling_fault
from jaxspec.testing.states import has_shared, own_leaves, repeat_first
from jaxspec.typing import Params, PyTree

_SAMPLED: tuple[Selection, ...] = ("without_replacement", "with_replacement")


def check_drafter(
    drafter: Drafter,
    params: Params = None,
    *,
    target: Target,
    target_params: Params,
    prompt: PyTree,
    tree: Tree | DynamicTree | None = None,
    depends_on: Literal["tokens", "rounds"] = "tokens",
    selections: tuple[Selection, ...] = _SAMPLED,
    length: int = 20,
    draws: int = 900,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> None:
    """Checks that a drafter keeps the contract of `Drafter`.

    Args:
      drafter: the drafter.
      params: its parameters, in float32 for a sharp check, as `Engine.variables` takes
        them.
      target: target for which it drafts.
      target_params: parameters of the target.
      prompt: prompts of at least two sequences, as `Engine.generate` takes them.
      tree: draft tree; by default the drafter's own `tree`, else the paths
        0,1,00,01,10,000 down to `max_depth`. Children are compared with `log_q` on
        static trees only.
      depends_on: input of the drafts. "tokens": committed tokens and their features, so
        that drafts after several accepted tokens equal those after the same tokens one
        by one. "rounds": also earlier drafts or logits of rejected nodes (n-gram
        tables, `Jacobi`), which skips this comparison.
      selections: selections of samples that are tried. Those that the drafter refuses
        with a `ConfigError` or declares as others are left out.
      length: number of tokens that are generated.
      draws: number of drafts that are compared with `log_q`, for each selection.
      seed: seed of keys and samples.
      tolerance: largest difference of probabilities that must agree.

    Raises:
      ConfigError: the drafter breaks its contract; the message has one sentence for
        each part that is broken.
    """
    faults = drafter_faults(
        drafter,
        params,
        target=target,
        target_params=target_params,
        prompt=prompt,
        tree=tree,
        depends_on=depends_on,
        selections=selections,
        length=length,
        draws=draws,
        seed=seed,
        tolerance=tolerance,
    )
    if faults := list(faults):
        raise ConfigError("the drafter breaks its contract:\n- " + "\n- ".join(faults))


def drafter_faults(
    drafter: Any,
    params: Params = None,
    *,
    target: Target,
    target_params: Params,
    prompt: PyTree,
    tree: Tree | DynamicTree | None = None,
    depends_on: Literal["tokens", "rounds"] = "tokens",
    selections: tuple[Selection, ...] = _SAMPLED,
    length: int = 20,
    draws: int = 900,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> Iterator[str]:
    """Yields one sentence for each broken part; see `check_drafter`."""
    if depends_on not in ("tokens", "rounds"):
        raise ConfigError(f"depends_on={depends_on!r}; use 'tokens' or 'rounds'")
    batch = jax.tree.leaves(prompt)[0].shape[0]
    if batch < 2:
        raise ConfigError("the prompts have one sequence; give at least two")
    faults = list(_static_faults(drafter))
    yield from faults
    if faults:
        return
    temperature = jnp.resize(jnp.array([1.0, 0.0, 0.7]), batch)
    cfg_scale = 2.0 if target.branches == 2 else 1.0
    rounds = Rounds(
        drafter,
        join_target_params(drafter, params, target_params),
        target,
        target_params,
        prompt,
        _default_tree(drafter) if tree is None else tree,
        length,
        Sampling.create(batch, temperature=temperature, cfg_scale=cfg_scale),
        seed,
    )
    checks = _Checks(rounds, depends_on, selections, draws, tolerance)
    yield from checks.depth()
    faults = list(checks.structure())
    yield from faults
    if not faults:
        yield from checks.tokens()
        faults = list(checks.drafts())
        yield from faults
        yield from checks.past()
        yield from checks.others()
        yield from checks.accepted()
        if not faults:
            yield from checks.samples()


def _static_faults(drafter: Any) -> Iterator[str]:
    """Functions that are missing, and objects that cannot be static under `jit`."""
    if isinstance(drafter, type):
        yield f"{drafter.__name__} is a class; pass an instance"
        return
    for name in ("init", "propose", "observe"):
        if not callable(getattr(drafter, name, None)):
            yield f"the drafter has no function `{name}`"
    try:
        hash(drafter)
    except TypeError as error:
        yield f"the drafter is not hashable ({error}); make it a frozen dataclass"


def _default_tree(drafter: Any) -> Tree | DynamicTree:
    own = getattr(drafter, "tree", None)
    if isinstance(own, Tree | DynamicTree):
        return own
    paths = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    depth = getattr(drafter, "max_depth", 3)
    return Tree.from_paths([path for path in paths if len(path) <= depth])


@dataclass(frozen=True)
class _Checks:
    rounds: Rounds
    depends_on: str
    selections: tuple[Selection, ...]
    draws: int
    tolerance: float

    # Recorded runs.

    @cached_property
    def plain(self) -> Run:
        """Nothing is accepted: one token a round."""
        return self.rounds.run(lambda i: 0)

    @cached_property
    def coupled(self) -> Run:
        """Coupled verification."""
        return self.rounds.run()

    @cached_property
    def forced(self) -> Run:
        """Everything, nothing, and a part of a draft are accepted."""
        depth = self.rounds.tree.depth
        pattern = np.array([depth, 0, min(1, depth), depth, depth])
        return self.rounds.run(
            lambda i: pattern[(i + np.arange(self.rounds.batch)) % len(pattern)]
        )

    # Structure.

    def depth(self) -> Iterator[str]:
        """A chain of `max_depth` can be drafted."""
        most = getattr(self.rounds.drafter, "max_depth", None)
        if most is None or most >= 64:  # unlimited
            return
        chain = replace(self.rounds, tree=Tree.chain(most))
        own = getattr(self.rounds.drafter, "tree", None)
        if isinstance(own, Tree):  # it drafts no other
            return
        try:
            chain.abstract()
        except (PartError, ConfigError) as error:
            yield f"max_depth is {most}, but a chain of {most} fails: {error}"
            return
        check = getattr(self.rounds.drafter, "check_tree", None)
        if check is None:
            return
        try:
            check(Tree.chain(most + 1))
        except ConfigError:
            return
        yield f"max_depth is {most}, but check_tree accepts a chain of {most + 1}"

    def structure(self) -> Iterator[str]:
        """Shapes and dtypes of drafts and states, without running anything."""
        batch, branches = self.rounds.batch, self.rounds.target.branches
        try:
            first = jax.eval_shape(self.rounds.start).drafter
        except (PartError, ConfigError) as error:
            yield str(error)
            return
        found = False
        for path, x in own_leaves(first):
            if x.ndim and x.shape[0] not in (batch, batch * branches):
                found = True
                yield (
                    f"the state has an array {list(x.shape)} at {path}; the first axis "
                    f"is the batch, {batch} or {batch * branches} with branches, "
                    "unless it is in core.shared.Shared"
                )
        if found:
            return
        try:
            log_q = self.rounds.abstract().draft.log_q
        except (PartError, ConfigError) as error:
            yield str(error)
            return
        if log_q is not None and log_q.dtype != jnp.float32:
            yield f"Draft.log_q is {log_q.dtype}; use float32"

    # Values.

    def tokens(self) -> Iterator[str]:
        """Tokens are those of plain decoding."""
        if not np.array_equal(self.coupled.tokens, self.plain.tokens):
            yield (
                "tokens differ from those of plain decoding with the same keys; check "
                "the target with check_target, and the drafter's feature_layers and "
                "extra queries"
            )

    def drafts(self) -> Iterator[str]:
        """Tokens, parents, probabilities and ranks of recorded drafts."""
        rounds, tree = self.coupled.rounds, self.rounds.tree
        live = [each.counts > 0 for each in rounds]
        found: set[str] = set()
        for each, rows in zip(rounds, live, strict=True):
            for fault in draft_faults(each, rows, tree, self.rounds.target.vocab_size):
                name = fault.split(" ")[0]
                if name not in found:  # one sentence for each kind
                    yield fault
                found.add(name)
        draft = rounds[0].draft
        if found or draft.log_q is None or not isinstance(tree, Tree):
            return
        if tree.size > 1 and draft.selection in ("top", "coupled"):
            drafts = _siblings(rounds, tree, live)
            if fault := ranking_fault(drafts, draft.selection):
                yield fault

    def past(self) -> Iterator[str]:
        """Entries that are documented as arbitrary have no influence."""
        junk = self.rounds.run(junk=True)
        if difference := self._first_difference(junk, self.coupled, same_row=True):
            sequence, index, _ = difference
            yield (
                f"the draft of sequence {sequence} at token {index} depends on "
                "arbitrary entries; read `ctx.tokens` before `ctx.index` only, and "
                "`result.tokens` before `result.counts`"
            )

    def others(self) -> Iterator[str]:
        """Other prompts and keys in the last sequence change no other sequence."""
        if has_shared(self.coupled.rounds[0].state):
            return
        last = self.rounds.batch - 1
        prompt = jax.tree.map(
            lambda x: jnp.asarray(x).at[last].set(x[0]), self.rounds.prompt
        )
        keys = batch_keys(self.rounds.seed + 1, self.rounds.batch)
        keys = jnp.concatenate([self.rounds.keys[:-1], keys[-1:]])
        other = self.rounds.run(prompt=prompt, keys=keys)
        found = self._first_difference(other, self.coupled, sequences=range(last))
        if found:
            yield (
                f"the draft of sequence {found[0]} at token {found[1]} changes with "
                f"prompt and key of sequence {last}; sequences must not depend on each "
                "other"
            )

    def accepted(self) -> Iterator[str]:
        """Drafts after accepted paths equal those after the same tokens one by one."""
        if self.depends_on != "tokens":
            return
        run = self.forced
        single = self.rounds.run(lambda i: 0, run.tokens)
        found = self._first_difference(run, single)
        if not found:
            return
        sequence, index, number = found
        before = run.rounds[number - 1].result if number else None
        count = int(np.asarray(before.accepted)[sequence]) if before else 0
        yield (
            f"after a round that accepted {count} of {self.rounds.tree.depth} drafted "
            f"tokens the draft of sequence {sequence} at token {index} differs from "
            "the draft after the same tokens one by one: `observe` must keep what "
            "belongs to `result.path` (node 0 is the root, which the drafter has not "
            "stored yet) and count `result.counts` tokens; if drafts depend on earlier "
            "rounds by design, pass depends_on='rounds'"
        )

    def samples(self) -> Iterator[str]:
        """Drafts with many keys follow `log_q`."""
        if not isinstance(self.rounds.tree, Tree) or not self.rounds.tree.gapless:
            return
        for selection in self.selections:
            faults = list(self._sampled(selection))
            yield from faults
            if faults:
                return

    def _sampled(self, selection: Selection) -> Iterator[str]:
        """Faults of one selection."""
        tree, batch = self.rounds.tree, self.rounds.batch
        assert isinstance(tree, Tree)
        each = self.coupled.rounds[min(1, len(self.coupled.rounds) - 1)]
        # Every sequence is the first one, which has temperature 1, with another key.
        state = repeat_first(each.state, batch)
        ctx = replace(repeat_first(each.ctx, batch), selection=selection)
        propose = jax.jit(self.rounds.drafter.propose)
        calls = -(-self.draws // batch)
        keys = batch_keys(self.rounds.seed, calls * batch).reshape(calls, batch)

        noises = ctx.noise, jnp.roll(ctx.noise, 1, axis=-1)

        def draw(i: int, noise: int = 0):
            changed = replace(ctx, noise=noises[noise], keys=keys[i])
            return propose(self.rounds.params, state, changed)[0]

        try:
            draft = draw(0)
        except ConfigError:  # the drafter does not offer this selection
            return
        if draft.selection in ("guess", *DETERMINISTIC):
            return
        if draft.log_q is None:
            yield (
                f"Draft.selection is {draft.selection!r}, but log_q is None; samples "
                "need the distribution that they were taken from"
            )
            return
        for i in range(8):
            one, other = draw(i), draw(i, 1)
            if not np.array_equal(one.tokens, other.tokens):
                yield (
                    f"Draft.selection is {draft.selection!r}, but the tokens change "
                    "with ctx.noise, which the verifier uses again; sample with "
                    "ctx.keys alone"
                )
                return
        drafts = [draw(i) for i in range(calls)]
        tokens = np.stack([np.asarray(x.tokens) for x in drafts])  # [draws / B, B, N]
        if (tokens == tokens[:, :1]).all() and (tokens != tokens[:1]).any():
            yield (
                "sequences that differ in their key only have equal drafts; sample "
                "with `ctx.keys[i]` for sequence i"
            )
            return

        def join(name: str) -> np.ndarray:
            return np.concatenate([np.asarray(getattr(x, name)) for x in drafts])

        noise = np.broadcast_to(0.0, (1, *ctx.noise.shape[1:]))
        valid = join("valid")
        valid[:, 0] = True
        siblings = Siblings(tree, join("tokens"), valid, join("log_q"), noise)
        if draft.pruned_by == "token":  # makes no claim
            return
        if fault := sampling_fault(siblings, draft.selection):
            yield fault

    def _first_difference(
        self, run: Run, other: Run, *, same_row: bool = False, sequences=None
    ) -> tuple[int, int, int] | None:
        """Sequence, token and round of the first draft that differs in two runs."""
        chosen = range(self.rounds.batch) if sequences is None else sequences
        for sequence in chosen:
            expected = other.drafts(sequence)
            for index, (number, row) in run.drafts(sequence).items():
                if index not in expected:
                    if same_row:
                        return sequence, index, number
                    continue
                if self._differ(row, expected[index][1]):
                    return sequence, index, number
        return None

    def _differ(self, x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> bool:
        """Whether drafts of one sequence differ by more than rounding."""
        if "log_q" in x:  # of the root: of other nodes it depends on the tokens
            with np.errstate(invalid="ignore"):
                error = np.abs(np.exp(x["log_q"][:1]) - np.exp(y["log_q"][:1]))
            return not error.max(initial=0.0) <= self.tolerance
        if not np.array_equal(x["valid"][1:], y["valid"][1:]):
            return True
        valid = x["valid"].copy()
        valid[0] = False
        names = [name for name in ("tokens", "parents") if name in x]
        return any((x[name] != y[name])[valid].any() for name in names)


def _siblings(rounds: list[Round], tree: Tree, live: list[np.ndarray]) -> Siblings:
    """Drafts of several rounds, of the sequences that were not done."""

    def join(pick) -> np.ndarray:
        return np.concatenate(
            [np.asarray(pick(x))[rows] for x, rows in zip(rounds, live, strict=True)]
        )

    return Siblings(
        tree,
        join(lambda x: x.draft.tokens),
        join(lambda x: x.draft.valid.at[:, 0].set(True)),
        join(lambda x: x.draft.log_q),
        join(lambda x: x.ctx.noise),
    )
