"""What every verifier takes and returns."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

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
    """Which part of a draft is kept, and the token that follows it.

    Attributes:
      path: int32 [B, A], nodes from the root along the accepted branch; entries after
        `accepted` repeat the last node.
      accepted: int32 [B], drafted tokens kept, 0 to `A - 1`.
      next_token: int32 [B], the target's own token after them.
      margin: float32 [B, A], by how much each decision on the path was won: the
        distance between the best and the second best score at that node. Infinite
        where equality with plain decoding is not promised, NaN where scores were.
    """

    path: Int[Array, "B A"]
    accepted: Int[Array, "B"]
    next_token: Int[Array, "B"]
    margin: Float[Array, "B A"]

    def emitted(self, draft: Draft) -> tuple[Int[Array, "B A"], Int[Array, "B"]]:
        """The new tokens of each row, and how many of them count (`accepted + 1`)."""
        kept = gather_nodes(draft.tokens, self.path[:, 1:])
        kept = jnp.pad(kept, ((0, 0), (0, 1)))
        last = jnp.arange(self.path.shape[1])[None] == self.accepted[:, None]
        return jnp.where(last, self.next_token[:, None], kept), self.accepted + 1


class Verifier(Protocol):
    """A frozen, hashable verifier."""

    @property
    def lossless(self) -> bool:
        """Whether the output follows the target's distribution exactly."""
        ...

    @property
    def selection(self) -> Selection:
        """How a drafter should choose candidates for this verifier."""
        ...

    @property
    def token_exact(self) -> bool:
        """Whether near-ties (`Verdict.margin`) are to be decided again by the loop."""
        ...

    def verify(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        noise: Noise,
        params: Params = None,
        features: Float[Array, "R N E"] | None = None,
    ) -> Verdict:
        """Judges a draft.

        Args:
          log_p: processed target scores after each node, up to a constant a node.
          draft: the drafter's guesses.
          tree: their shape, or its bound.
          noise: the round's randomness.
          params: arrays that the verifier needs (a neighbor table, a trained head).
          features: the target's hidden states at each node, conditional rows first.

        Raises:
          ConfigError: the draft was not made the way this verifier needs, or something
            it needs is missing.
        """
        ...


class LosslessVerifier:
    """Verifiers whose output follows the target's distribution, whatever is drafted."""

    @property
    def lossless(self) -> bool:
        """Always."""
        return True


class LossyVerifier:
    """Verifiers that trade the target's distribution for speed. Never a default."""

    @property
    def lossless(self) -> bool:
        """Never."""
        return False


def checked_draft(
    log_p: Float[Array, "B N V"],
    draft: Draft,
    tree: Tree | DynamicTree,
    noise: Noise | None = None,
) -> tuple[Draft, Topology]:
    """`Draft.checked`, once scores, draft and noise are known to fit each other.

    Raises:
      ConfigError: they do not.
    """
    rows, size = jnp.shape(draft.tokens)[0], tree.size
    shape = jnp.shape(log_p)
    if len(shape) != 3 or shape[:2] != (rows, size):
        raise ConfigError(
            f"target scores have shape {list(shape)}; a draft of {rows} rows on a tree "
            f"of {size} nodes needs [{rows}, {size}, V]"
        )
    if noise is not None:
        wanted = (rows, tree.depth + 1, shape[2])
        if noise.coupled.shape != wanted or noise.nodes.shape != (rows, size):
            raise ConfigError(
                f"noise is for {list(noise.coupled.shape)} and "
                f"{noise.nodes.shape[-1]} nodes, not for {list(wanted)} and {size}; "
                "draw it with draw_noise(keys, positions [B, A], nodes, vocab_size)"
            )
    return draft.checked(tree, shape[2])


def survives(
    shape: Topology, log_p: Float[Array, "B N V"], draft: Draft
) -> Bool[Array, "B N"]:
    """Nodes whose token the filters left to choose: its score is not -inf."""
    return shape.at_parent(log_p, draft.tokens[..., None])[..., 0] > -jnp.inf


Filtered = Literal["never", "published"]


def check_filtered(value: str) -> None:
    """Refuses what is no `Filtered`.

    Raises:
      ConfigError: it is none.
    """
    if value not in Filtered.__args__:
        raise ConfigError(f"filtered={value!r}; use {' or '.join(Filtered.__args__)}")


def log_softmax(scores: Float[Array, "... V"]) -> Float[Array, "... V"]:
    """Normalized scores; one of +inf has all the mass, none but -inf are NaN."""
    shifted = scores - jnp.max(scores, axis=-1, keepdims=True)
    shifted = jnp.where(jnp.isposinf(scores), 0.0, shifted)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))


def target_log_probs(
    log_p: Float[Array, "B ... V"], greedy: Bool[Array, "B"] | None
) -> Float[Array, "B ... V"]:
    """Normalized; greedy rows have all mass on the best token, lowest id on ties."""
    normal = log_softmax(log_p)
    if greedy is None:
        return normal
    best = jnp.argmax(log_p, axis=-1)[..., None]
    ids = jax.lax.broadcasted_iota(jnp.int32, log_p.shape, log_p.ndim - 1)
    sharp = jnp.where(ids == best, 0.0, -jnp.inf).astype(normal.dtype)
    return jnp.where(greedy.reshape(-1, *(1,) * (log_p.ndim - 1)), sharp, normal)


# Candidates that are given, as it were, not samples of `q`; and those that are.
DETERMINISTIC = ("guess", "top", "coupled")
SAMPLED = ("without_replacement", "with_replacement")
_ROUNDING = 1e-3  # how far above 0 a log-probability may lie


def require_samples(
    verifier: Any,
    draft: Draft,
    shape: Topology,
    tree: Tree | DynamicTree,
    allowed: tuple[str, ...] = SAMPLED,
) -> tuple[Draft, Float[Array, "B I V"]]:
    """The draft and the drafter's log-probabilities, if tokens are samples of them.

    A node after which these are no log-probabilities (NaN, or a probability above 1)
    has no valid child.

    Raises:
      ConfigError: the draft was chosen otherwise, pruned by its own tokens, holds
        ranks that skip a sample, or comes without probabilities.
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
            f"{name} needs drafts whose length was decided from the past only; a "
            "policy that drops a token for what it is biases the output. Stop after "
            "the token instead (keep_trigger=True), or use Coupled"
        )
    if isinstance(tree, Tree) and not tree.gapless:
        raise ConfigError(
            f"{name} needs children of ranks 0, 1, ... without a gap: a sample that is "
            "drawn and not verified biases the output"
        )
    sound = jnp.all(draft.log_q <= _ROUNDING, axis=-1)  # also False for NaN
    log_q = jnp.where(sound[..., None], draft.log_q, -jnp.inf)
    if shape.internal is not None:
        sound = jnp.take_along_axis(
            sound, jnp.broadcast_to(shape.slots, draft.tokens.shape), axis=1
        )
    valid = draft.valid & shape.gather_parents(sound)
    return replace(draft, valid=valid.at[:, 0].set(True)), log_q


def require_param(verifier: Any, params: Params, name: str) -> Any:
    """`params[name]`, or one clear error."""
    if params is None or name not in params:
        raise ConfigError(
            f"{type(verifier).__name__} needs params={{{name!r}: ...}}; see its "
            "docstring"
        )
    return params[name]
