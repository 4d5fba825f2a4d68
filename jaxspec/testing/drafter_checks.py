"""Runs of a drafter with chosen acceptance, and comparisons of its drafts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.noise import batch_keys
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Selection
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import DETERMINISTIC
from jaxspec.testing.draft_faults import draft_faults
from jaxspec.testing.recorded_rounds import PartError, Round, Rounds, Run
from jaxspec.testing.sibling_distribution import Siblings, ranking_fault, sampling_fault
from jaxspec.testing.states import has_shared, own_leaves, repeat_first


@dataclass(frozen=True)
class DrafterChecks:
    """Checks of a drafter; each yields one sentence for each broken part.

    Attributes:
      rounds: rounds of the drafter with a target.
      depends_on: input of the drafts, see `check_drafter`.
      selections: selections of samples that are tried.
      draws: number of drafts that are compared with `log_q`, for each selection.
      tolerance: largest difference of probabilities that must agree.
    """

    rounds: Rounds
    depends_on: str
    selections: tuple[Selection, ...]
    draws: int
    tolerance: float

    def faults(self) -> Iterator[str]:
        """All checks, without those that faults of the structure would break."""
        yield from self.depth()
        faults = list(self.structure())
        yield from faults
        if faults:
            return
        yield from self.tokens()
        faults = list(self.drafts())
        yield from faults
        yield from self.past()
        yield from self.others()
        yield from self.accepted()
        if not faults:
            yield from self.samples()

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
        """Tokens are those of a run in which nothing is accepted."""
        if not np.array_equal(self.coupled.tokens, self.plain.tokens):
            yield (
                "tokens change with the number of accepted tokens; check the target "
                "with check_target, and the drafter's feature_layers and extra queries"
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
        if "log_q" in x:  # below the root it depends on the tokens, if they differ
            same = np.array_equal(x["tokens"], y["tokens"])
            same = same and np.array_equal(x["valid"], y["valid"])
            rows = slice(None) if same else slice(1)
            with np.errstate(invalid="ignore"):
                error = np.abs(np.exp(x["log_q"][rows]) - np.exp(y["log_q"][rows]))
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
