"""Verdicts on all drafts over a small vocabulary, and checks of their parts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.noise import Noise, batch_keys, draw_noise
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import Verdict
from jaxspec.testing.drafts import Conditionals, Drafts, all_drafts
from jaxspec.testing.enumeration import assert_lossless, scores_at_nodes
from jaxspec.typing import Params

_KEYS = 8  # verdicts of each draft


@dataclass(frozen=True)
class VerifierChecks:
    """Checks of a verifier; each yields one sentence for each broken part.

    Attributes:
      verifier: the verifier.
      params: its parameters.
      vocab_size: number of tokens.
      tree: static draft tree.
      feature_width: width of random features, `E`.
      draws: number of rounds that are sampled for a claim to be lossless.
      seed: seed of distributions and keys.
    """

    verifier: Any
    params: Params
    vocab_size: int
    tree: Tree
    feature_width: int
    draws: int
    seed: int

    def faults(self) -> Iterator[str]:
        """All checks, without those that faults of the structure would break."""
        faults = list(self.structure())
        yield from faults
        if faults:
            return
        yield from self.paths()
        yield from self.tokens()
        yield from self.margins()
        yield from self.others()
        if self.verifier.lossless:
            yield from self.lossless()

    def conditionals(self, number: int) -> tuple[Conditionals, Conditionals]:
        """Target and drafter; some tokens of the target have probability 0."""
        depth, seed = self.tree.depth, self.seed + number
        zeros = 0.3 * (number % 2)
        p = Conditionals.random(self.vocab_size, depth + 1, seed, zeros=zeros)
        return p, Conditionals.random(self.vocab_size, depth, 1000 + seed)

    def possible(self, selection: Selection) -> tuple[Conditionals, Drafts]:
        """Target with zeros, and all drafts with more than probability 0."""
        p, q = self.conditionals(1)
        drafts = all_drafts(q, self.tree, selection)
        chosen = np.flatnonzero(drafts.chance > 0)
        draft = jax.tree.map(lambda x: jnp.asarray(x)[chosen], drafts.draft)
        return p, replace(drafts, draft=draft, chance=drafts.chance[chosen])

    @cached_property
    def drafts(self) -> Drafts:
        """Every draft `_KEYS` times, in the last half with nodes that are not valid."""
        _, drafts = self.possible(self.verifier.selection)
        count = len(drafts.chance)
        rows = np.tile(np.arange(count), _KEYS)
        draft = jax.tree.map(lambda x: jnp.asarray(x)[rows], drafts.draft)
        rng = np.random.default_rng(self.seed)
        kept = rng.random(draft.valid.shape) < 0.7
        kept[: len(rows) // 2] = True
        draft = draft.keep(jnp.asarray(kept), past=True)
        return replace(drafts, draft=draft, chance=drafts.chance[rows])

    @cached_property
    def log_p(self) -> np.ndarray:
        """Scores of the target at all nodes, float32 [B, N, V]."""
        p, _ = self.conditionals(1)
        return scores_at_nodes(p, self.drafts).astype(np.float32)

    @cached_property
    def noise(self) -> Noise:
        """Noise of all rows; every fourth is greedy."""
        batch = len(self.drafts.chance)
        positions = jnp.tile(jnp.arange(self.tree.depth + 1), (batch, 1))
        greedy = jnp.arange(batch) % 4 == 3
        keys = batch_keys(self.seed, batch)
        return draw_noise(keys, positions, self.tree.size, self.vocab_size, greedy)

    @property
    def arguments(self) -> tuple[Draft, Noise, np.ndarray]:
        """Arguments of `verify`."""
        return self.drafts.draft, self.noise, self.log_p

    def verify(self, draft: Draft, noise: Noise, log_p: Any) -> Verdict:
        """Verdict of a batch."""
        shape = len(draft.tokens), self.tree.size, self.feature_width
        features = jax.random.normal(jax.random.key(self.seed), shape, jnp.float32)
        return self.verifier.verify(
            jnp.asarray(log_p), draft, self.tree, noise, self.params, features
        )

    @cached_property
    def _program(self):
        return jax.jit(self.verify)

    @cached_property
    def verdict(self) -> Verdict:
        """Verdict of all rows."""
        verdict = self._program(*self.arguments)
        return jax.tree.map(np.asarray, verdict)

    def structure(self) -> Iterator[str]:
        """Shapes and dtypes of the verdict."""
        found = jax.eval_shape(self.verify, *self.arguments)
        if not isinstance(found, Verdict):
            yield f"verify returns a {type(found).__name__}; return a verify.Verdict"
            return
        batch, length = len(self.drafts.chance), self.tree.depth + 1
        expected = {
            "path": ((batch, length), jnp.integer),
            "accepted": ((batch,), jnp.integer),
            "next_token": ((batch,), jnp.integer),
            "margin": ((batch, length), jnp.floating),
        }
        for name, (shape, kind) in expected.items():
            x = getattr(found, name)
            if x.shape != shape or not jnp.issubdtype(x.dtype, kind):
                yield (
                    f"Verdict.{name} is {x.dtype}{list(x.shape)}; return "
                    f"{kind.__name__}{list(shape)} for {batch} sequences and a tree of "
                    f"depth {self.tree.depth}"
                )

    def paths(self) -> Iterator[str]:
        """A path leads from the root to a valid node."""
        path, accepted = map(np.asarray, (self.verdict.path, self.verdict.accepted))
        depth = self.tree.depth
        if (wrong := (accepted < 0) | (accepted > depth)).any():
            yield (
                f"Verdict.accepted has {accepted[wrong][0]}; it counts accepted "
                f"drafted tokens, 0 to {depth}"
            )
            return
        if (path[:, 0] != 0).any():
            yield "Verdict.path begins with another node than the root, node 0"
            return
        if ((path < 0) | (path >= self.tree.size)).any():
            yield f"Verdict.path has nodes outside of 0 to {self.tree.size - 1}"
            return
        index = np.arange(1, depth + 1)[None]
        on_path = index <= accepted[:, None]
        parents = np.array(self.tree.parents)
        wrong = (parents[path[:, 1:]] != path[:, :-1]) & on_path
        if wrong.any():
            row, step = np.argwhere(wrong)[0]
            yield (
                f"Verdict.path has node {path[row, step + 1]} after node "
                f"{path[row, step]}, which is not its parent"
            )
            return
        last = np.take_along_axis(path, accepted[:, None], axis=1)
        if (np.where(on_path, last, path[:, 1:]) != last).any():
            yield (
                "Verdict.path changes after `accepted`; repeat the last accepted node "
                "there"
            )
        valid = np.asarray(self.drafts.draft.valid)
        if (~np.take_along_axis(valid, path[:, 1:], axis=1) & on_path).any():
            yield "the verifier accepts nodes that are not `draft.valid`"

    def tokens(self) -> Iterator[str]:
        """Next tokens exist, and those of greedy or coupled sequences are known."""
        token, size = self.verdict.next_token, self.vocab_size
        if ((token < 0) | (token >= size)).any():
            yield f"Verdict.next_token has tokens outside of 0 to {size - 1}"
            return
        if not self._consistent:
            return
        if self.verifier.lossless and (self._score(self.log_p) == -np.inf).any():
            yield (
                "the verifier emits tokens with a score of -inf, which the filters "
                "removed"
            )
            return
        greedy = np.asarray(self.noise.greedy)
        if self.verifier.lossless and self._misses(self.log_p)[greedy].any():
            yield (
                "greedy sequences (`noise.greedy`) emit other tokens than the likeliest"
            )
        if self.verifier.token_exact and self._misses(self._coupled)[~greedy].any():
            claim = (
                "lossless and token_exact" if self.verifier.lossless else "token_exact"
            )
            yield (
                f"the verifier is {claim}, but emits other tokens than argmax(log_p + "
                "noise.coupled), those of plain decoding"
            )

    @cached_property
    def _consistent(self) -> bool:
        return not list(self.paths())

    @property
    def _coupled(self) -> np.ndarray:
        depths = np.asarray(self.tree.depths)
        return self.log_p + np.asarray(self.noise.coupled)[:, depths]

    def _emitted(self) -> tuple[np.ndarray, np.ndarray]:
        """Emitted tokens [B, A], and the mask of those that count."""
        verdict: Any = jax.tree.map(jnp.asarray, self.verdict)
        tokens, counts = map(np.asarray, verdict.emitted(self.drafts.draft))
        mask = np.arange(tokens.shape[1])[None] < counts[:, None]
        if not self.verifier.lossless:  # the target's own token alone
            mask &= np.arange(tokens.shape[1])[None] == counts[:, None] - 1
        return tokens, mask

    def _score(self, score: np.ndarray) -> np.ndarray:
        """Scores of the emitted tokens, [B, A]; 0 where none is emitted."""
        tokens, mask = self._emitted()
        rows = np.arange(len(tokens))[:, None]
        return np.where(mask, score[rows, self.verdict.path, tokens], 0.0)

    def _misses(self, score: np.ndarray) -> np.ndarray:
        """Mask of the sequences that emit a token whose score is not the best."""
        best = score.max(axis=-1)[np.arange(len(score))[:, None], self.verdict.path]
        _, mask = self._emitted()
        return ((self._score(score) < best) & mask).any(axis=1)

    def margins(self) -> Iterator[str]:
        """Margins are leads of scores, or infinite."""
        margin, accepted = self.verdict.margin, self.verdict.accepted
        on_path = np.arange(margin.shape[1])[None] <= accepted[:, None]
        if np.isnan(margin[on_path]).any():
            yield "Verdict.margin is NaN for finite scores; NaN marks a broken target"
        elif (margin[on_path] < 0).any():
            yield "Verdict.margin is negative; it is the lead of the best score"
        elif not self.verifier.token_exact and not np.isposinf(margin[on_path]).all():
            yield (
                "Verdict.margin is finite, but the verifier is not token_exact: return "
                "infinity, since no decision is repeated"
            )
        elif self.verifier.token_exact and np.isposinf(margin[on_path]).all():
            yield (
                "Verdict.margin is infinite, but the verifier is token_exact: return "
                "the lead of the best score over the second, so that near-ties are "
                "resolved"
            )

    def others(self) -> Iterator[str]:
        """The verdict of a sequence does not depend on the others."""
        half = np.arange(len(self.drafts.chance))
        half[len(half) // 2 :] = half[: len(half) - len(half) // 2][::-1]
        draft, noise = (
            jax.tree.map(lambda x: x[half], part)
            for part in (self.drafts.draft, self.noise)
        )
        found = self._program(draft, noise, self.log_p[half])
        for name in ("path", "accepted", "next_token"):
            rows = np.arange(len(half) // 2)
            x, y = np.asarray(getattr(found, name)), getattr(self.verdict, name)
            if (x[rows] != y[rows]).any():
                yield (
                    f"Verdict.{name} of a sequence changes with the other sequences of "
                    "the batch"
                )
                return

    def lossless(self) -> Iterator[str]:
        """The output distribution is the target's, for every draft that is taken."""
        own = self.verifier.selection
        for number in range(2):
            p, q = self.conditionals(number)
            drafts = all_drafts(q, self.tree, own)
            if fault := self._biased(p, drafts, self.draws, refusable=False):
                yield f"lossless is True, but {fault}"
                return
        for selection in get_args(Selection):
            p, q = self.conditionals(0)
            drafts = all_drafts(q, self.tree, selection)
            if selection != own and (fault := self._biased(p, drafts, self._draws)):
                yield (
                    f"lossless is True, but for a draft with selection {selection!r} "
                    f"{fault}; refuse such drafts with a ConfigError (require_samples)"
                )
                return
        p, q = self.conditionals(0)
        drafts = all_drafts(q, self.tree, own)
        even = drafts.draft.tokens % 2 == 0
        pruned = replace(drafts, draft=drafts.draft.keep(even, past=False))
        if fault := self._biased(p, pruned, self._draws):
            yield (
                f"lossless is True, but for a draft pruned by its tokens {fault}; "
                "refuse drafts with pruned_by='token' (require_samples)"
            )

    @property
    def _draws(self) -> int:
        """Rounds that are sampled where an outcome can be enumerated instead."""
        return 0 if hasattr(self.verifier, "outcome") else self.draws

    def _biased(
        self, p: Conditionals, drafts: Drafts, draws: int, *, refusable: bool = True
    ) -> str:
        """Words on a bias; empty if there is none, or the draft may be refused."""
        try:
            assert_lossless(self.verifier, p, drafts, self.params, draws=draws)
        except AssertionError as error:
            return str(error)
        except ConfigError as error:
            return "" if refusable else f"it refuses its own selection: {error}"
        return ""
