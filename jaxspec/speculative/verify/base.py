"""Base class of verifiers, their results, and checks of drafts."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.noise import Noise
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import Topology, gather_nodes
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Bool, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class Verdict:
    """Accepted part of a draft, and the token that follows it.

    Attributes:
      path: int32 [B, A], accepted nodes, root first; entries after `accepted` repeat
        the last node.
      accepted: int32 [B], number of accepted tokens, 0 to `A - 1`.
      next_token: int32 [B], token of the target after the accepted ones.
      margin: float32 [B, A], lead of the best score over the second best at each node
        of the path. Infinite if the verifier is not token-exact, NaN where scores are.
    """

    path: Int[Array, "B A"]
    accepted: Int[Array, "B"]
    next_token: Int[Array, "B"]
    margin: Float[Array, "B A"]

    def emitted(self, draft: Draft) -> tuple[Int[Array, "B A"], Int[Array, "B"]]:
        """Emitted tokens, and their number `accepted + 1`; later ones are arbitrary."""
        tokens = gather_nodes(draft.tokens, self.path[:, 1:])
        tokens = jnp.pad(tokens, ((0, 0), (0, 1)))
        last = jnp.arange(self.path.shape[1])[None] == self.accepted[:, None]
        return jnp.where(last, self.next_token[:, None], tokens), self.accepted + 1


class Verifier(ABC):
    """Base class of verifiers, which decide what part of a draft is accepted.

    Verifiers are frozen dataclasses: static and hashable.

    Attributes:
      lossless: whether the output has exactly the distribution of the target.
      token_exact: whether the target's own tokens are those of plain decoding, so that
        near-ties (`Verdict.margin`) have to be resolved by `Target.rescore`.
      selection: selection of candidates that the verifier needs from a drafter.
    """

    lossless: bool = False
    token_exact: bool = False
    selection: Selection = "coupled"

    @abstractmethod
    def verify(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        noise: Noise,
        params: Params = None,
        features: Float[Array, "R N E"] | None = None,
    ) -> Verdict:
        """Decides which nodes of a draft are accepted, and which token follows.

        Args:
          log_p: processed logits of the target after each node.
          draft: draft of the round.
          tree: draft tree, or the bound of a dynamic one.
          noise: random noise of the round.
          params: arrays that the verifier reads (a neighbor table, a trained head).
          features: hidden states of the target at each node, conditional branch first.

        Raises:
          ConfigError: the draft was not made in the way that the verifier needs, or an
            argument that it needs is missing.
        """


def checked_draft(
    log_p: Float[Array, "B N V"],
    draft: Draft,
    tree: Tree | DynamicTree,
    noise: Noise | None = None,
) -> tuple[Draft, Topology]:
    """Checks that scores, draft and noise fit each other, then `Draft.checked`.

    Raises:
      ConfigError: shapes do not fit.
    """
    batch, size = jnp.shape(draft.tokens)[0], tree.size
    shape = jnp.shape(log_p)
    if len(shape) != 3 or shape[:2] != (batch, size):
        raise ConfigError(
            f"target scores have shape {list(shape)}; a draft of {batch} sequences and "
            f"{size} nodes needs [{batch}, {size}, V]"
        )
    if noise is not None:
        expected = (batch, tree.depth + 1, shape[2])
        if noise.coupled.shape != expected or noise.nodes.shape != (batch, size):
            raise ConfigError(
                f"noise has shape {list(noise.coupled.shape)} and "
                f"{noise.nodes.shape[-1]} nodes, not {list(expected)} and {size}; "
                "make it with draw_noise(keys, positions [B, A], nodes, vocab_size)"
            )
    return draft.checked(tree, shape[2])


def survives(
    shape: Topology, log_p: Float[Array, "B N V"], draft: Draft
) -> Bool[Array, "B N"]:
    """Mask of the nodes whose token is not filtered out: its score is not -inf."""
    return shape.at_parent(log_p, draft.tokens[..., None])[..., 0] > -jnp.inf


Filtered = Literal["never", "published"]


def check_filtered(value: str) -> None:
    """Checks a setting `filtered`.

    Raises:
      ConfigError: the value is not one of `Filtered`.
    """
    if value not in Filtered.__args__:
        raise ConfigError(f"filtered={value!r}; use {' or '.join(Filtered.__args__)}")


def log_softmax(scores: Float[Array, "... V"]) -> Float[Array, "... V"]:
    """Log-softmax in which a score of +inf has all mass; NaN if all scores are -inf."""
    shifted = scores - jnp.max(scores, axis=-1, keepdims=True)
    shifted = jnp.where(jnp.isposinf(scores), 0.0, shifted)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))


def target_log_probs(
    log_p: Float[Array, "B ... V"], greedy: Bool[Array, "B"] | None
) -> Float[Array, "B ... V"]:
    """Log-probabilities of the target.

    Greedy sequences have all mass on the best token, lowest id on ties.
    """
    normalized = log_softmax(log_p)
    if greedy is None:
        return normalized
    best = jnp.argmax(log_p, axis=-1)[..., None]
    ids = jax.lax.broadcasted_iota(jnp.int32, log_p.shape, log_p.ndim - 1)
    one_hot = jnp.where(ids == best, 0.0, -jnp.inf).astype(normalized.dtype)
    greedy = greedy.reshape(-1, *(1,) * (log_p.ndim - 1))
    return jnp.where(greedy, one_hot, normalized)


# Selections whose candidates are no samples of `q`, and selections that sample from it.
DETERMINISTIC = ("guess", "top", "coupled")
SAMPLED = ("without_replacement", "with_replacement")
_ROUNDING = 1e-3  # largest log-probability, above 0 by rounding


def require_samples(
    verifier: Any,
    draft: Draft,
    shape: Topology,
    tree: Tree | DynamicTree,
    allowed: tuple[str, ...] = SAMPLED,
) -> tuple[Draft, Float[Array, "B I V"]]:
    """Checks that the tokens of a draft are samples of the drafter's distribution.

    Args:
      verifier: verifier that needs samples.
      draft: draft of the round.
      shape: tables of the draft tree.
      tree: draft tree, or the bound of a dynamic one.
      allowed: selections that the verifier supports.

    Returns:
      The draft, and log-probabilities of the drafter. Where these are not
      log-probabilities (NaN, or a probability above 1), a node has no valid child.

    Raises:
      ConfigError: the candidates were selected otherwise or pruned by their tokens, the
        ranks have gaps, or the draft has no probabilities.
    """
    name = type(verifier).__name__
    if draft.selection not in allowed:
        raise ConfigError(
            f"{name} needs candidates chosen {' or '.join(allowed)}, not "
            f"{draft.selection}; set Engine.selection={allowed[0]!r}, or use Coupled, "
            "which takes any draft"
        )
    if draft.log_q is None:
        raise ConfigError(f"{name} needs the drafter's distribution (Draft.log_q)")
    if draft.pruned_by != "past":
        raise ConfigError(
            f"{name} needs drafts whose length depends on the past only; a policy that "
            "drops a token because of its value biases the output. Stop after the "
            "token instead (keep_trigger=True), or use Coupled"
        )
    if isinstance(tree, Tree) and not tree.gapless:
        raise ConfigError(
            f"{name} needs children of ranks 0, 1, ... without a gap: a sample that is "
            "not verified biases the output; use a tree without gaps, or Coupled"
        )
    proper = jnp.all(draft.log_q <= _ROUNDING, axis=-1)  # also False for NaN
    log_q = jnp.where(proper[..., None], draft.log_q, -jnp.inf)
    if shape.internal is not None:
        proper = jnp.take_along_axis(
            proper, jnp.broadcast_to(shape.slots, draft.tokens.shape), axis=1
        )
    valid = draft.valid & shape.gather_parents(proper)
    return replace(draft, valid=valid.at[:, 0].set(True)), log_q


def require_param(verifier: Any, params: Params, name: str) -> Any:
    """Returns `params[name]`.

    Raises:
      ConfigError: there is none.
    """
    if params is None or name not in params:
        raise ConfigError(
            f"{type(verifier).__name__} needs params={{{name!r}: ...}}; see its "
            "docstring"
        )
    return params[name]
