"""Verifiers with one fault each."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

import jaxspec
from jaxspec.speculative.verify.base import checked_draft, target_log_probs
from jaxspec.speculative.verify.coupled import longest_match


@dataclass(frozen=True)
class BrokenCoupled(jaxspec.verify.Coupled):
    """`Coupled` with a fault.

    Attributes:
      fault: fault of the verdict.
    """

    fault: str = ""

    def verify(self, log_p, draft, tree, noise, params=None, features=None) -> Any:
        verdict = super().verify(log_p, draft, tree, noise)
        path, accepted, token = verdict.path, verdict.accepted, verdict.next_token
        fault = self.fault
        if fault == "raises":
            raise ValueError("no such draft")
        if fault == "a pair":
            return path, accepted
        if fault == "floats":
            return replace(verdict, accepted=accepted.astype(jnp.float32))
        if fault == "short paths":
            return replace(verdict, path=path[:, 1:])
        if fault == "counts nodes":
            return replace(verdict, accepted=accepted + 1)
        if fault == "no root":
            return replace(verdict, path=path.at[:, 0].set(1))
        if fault == "siblings":  # every node in order
            path = jnp.broadcast_to(jnp.arange(path.shape[1]), path.shape)
            return replace(verdict, path=path, accepted=accepted * 0 + 2)
        if fault == "no repetition":
            index = jnp.arange(path.shape[1])[None]
            path = jnp.where(index <= accepted[:, None], path, 0)
            return replace(verdict, path=path)
        if fault == "unknown token":
            return replace(verdict, next_token=token + log_p.shape[-1])
        if fault == "negative margin":
            return replace(verdict, margin=-verdict.margin)
        if fault == "no margin":
            return replace(verdict, margin=jnp.full_like(verdict.margin, jnp.inf))
        if fault == "NaN":
            return replace(verdict, margin=jnp.full_like(verdict.margin, jnp.nan))
        if fault == "of the batch":
            return replace(verdict, next_token=token[::-1])
        if fault == "invalid nodes":
            draft = replace(draft, valid=jnp.ones_like(draft.valid))
            return super().verify(log_p, draft, tree, noise)
        if fault == "likeliest":
            greedy = replace(noise, coupled=jnp.zeros_like(noise.coupled))
            return super().verify(log_p, draft, tree, greedy)
        if fault == "warm":
            ones = jnp.where(noise.greedy[:, None, None], 3.0, 0.0)
            shift = jnp.arange(log_p.shape[-1]) * ones
            changed = replace(noise, coupled=noise.coupled + shift)
            return super().verify(log_p, draft, tree, changed)
        if fault == "filtered":
            floor = jnp.maximum(log_p, -3.0)
            return super().verify(floor, draft, tree, noise)
        return verdict


@dataclass(frozen=True)
class BrokenRejection(jaxspec.verify.Rejection):
    """`Rejection` with a fault.

    Attributes:
      fault: fault of the outcome.
    """

    fault: str = ""

    def outcome(self, log_p, draft, tree, greedy=None, params=None) -> Any:
        if self.fault == "any selection":
            draft = replace(draft, selection="without_replacement")
        if self.fault == "pruned":
            draft = replace(draft, pruned_by="past")
        if self.fault == "flat":
            log_p = 0.8 * log_p
        out = super().outcome(log_p, draft, tree, greedy, params)
        if self.fault == "no residual":
            p = jnp.exp(target_log_probs(log_p, greedy))
            return replace(out, final=p)
        return out

    def verify(self, log_p, draft, tree, noise, params=None, features=None) -> Any:
        verdict = super().verify(log_p, draft, tree, noise, params, features)
        if self.fault == "finite margin":
            return replace(verdict, margin=jnp.zeros_like(verdict.margin))
        if self.fault == "other verify":
            least = jnp.minimum(verdict.next_token, 1)
            return replace(verdict, next_token=least)
        return verdict


@dataclass(frozen=True)
class AcceptsAll(jaxspec.verify.Verifier):
    """Accepts every draft, and claims to be lossless."""

    lossless = True
    selection = "without_replacement"

    def verify(self, log_p, draft, tree, noise, params=None, features=None) -> Any:
        draft, shape = checked_draft(log_p, draft, tree, noise)
        choice = jnp.argmax(log_p + noise.coupled[:, shape.depths[0]], axis=-1)
        margin = jnp.full(choice.shape, jnp.inf, jnp.float32)
        match = draft.valid & ~noise.greedy[:, None]
        match &= shape.at_parent(log_p, draft.tokens[..., None])[..., 0] > -jnp.inf
        return longest_match(shape, match, choice.astype(jnp.int32), margin)


class NoSelection(jaxspec.verify.Coupled):
    """A verifier with an unknown selection."""

    selection: Any = "best"


class NoClaims:
    """A verifier without attributes."""

    selection = "coupled"
    verify = jaxspec.verify.Coupled.verify
