"""Choosing children from a drafter's distribution."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.spec.draft import DraftContext
from jaxspec.spec.sampling import process_logits
from jaxspec.spec.topology import gather_nodes
from jaxspec.spec.vocabulary import sample_by_inverse_cdf, vocab_top_k
from jaxspec.typing import Array, Float, Int, PyTree


def drafter_log_probs(
    ctx: DraftContext, logits: Float[Array, "B M V"]
) -> Float[Array, "B M V"]:
    """Log-probabilities as processed for the target: filtered tokens are -inf.

    So are those that are NaN: a tree must stay a tree, whatever a drafter says.
    """
    log_q = jax.nn.log_softmax(process_logits(logits, ctx.sampling, ctx.order), axis=-1)
    return jnp.where(jnp.isnan(log_q), -jnp.inf, log_q)


def inherit(own: PyTree, parents: Array | np.ndarray) -> PyTree:
    """What the parents' steps returned, for each of their children `[B, M, ...]`.

    Args:
      own: of the parents, `[B, P, ...]`.
      parents: int [b, M], `b` being 1 or `B`.
    """
    place = jnp.asarray(parents)
    return jax.tree.map(lambda x: gather_nodes(x, place), own)


def _independent(
    ctx: DraftContext, depth: int, log_q: Float[Array, "B M V"], width: int
):
    """`width` samples of each node, by inversion, and their log-probabilities."""
    share = jnp.exp(-jnp.exp(-private_noise(ctx, depth, (log_q.shape[1], width))))
    sampled = (ctx.sampling.temperature > 0)[:, None, None]
    best = jnp.argmax(log_q, axis=-1)[..., None]
    ids = jnp.where(sampled, sample_by_inverse_cdf(jnp.exp(log_q), share), best).astype(
        jnp.int32
    )
    return ids, jnp.take_along_axis(log_q, ids, axis=-1)


def private_noise(
    ctx: DraftContext, stream: int | Array, shape: tuple[int, ...]
) -> Array:
    """Gumbel noise `[B, *shape]` of the drafter's own; 0 in greedy rows."""

    def draw(key):
        return jax.random.gumbel(
            jax.random.fold_in(key, stream), shape, jnp.float32, mode="high"
        )

    noise = jax.vmap(draw)(ctx.keys)
    sampled = ctx.sampling.temperature.reshape(-1, *(1,) * len(shape)) > 0
    return jnp.where(sampled, noise, 0.0)


def choose_children(
    ctx: DraftContext,
    depth: int,
    log_q: Float[Array, "B M V"],
    width: int,
    children: Int[Array, "M"],
) -> tuple[Int[Array, "B M W"], Float[Array, "B M W"]]:
    """The `width` best children of `M` nodes of one depth, by `ctx.selection`.

    Args:
      ctx: the round.
      depth: of the nodes.
      log_q: their drafter's log-probabilities.
      width: `W`.
      children: how many children each node really has; the last one is the sample of
        "top_and_sample".

    Returns:
      Tokens, and the values they were ranked by; -inf says that there is no such token.
    """
    how, vocabulary = ctx.selection, log_q.shape[-1]
    if width > vocabulary:
        raise ConfigError(
            f"the tree asks for {width} children of one node, but there are only "
            f"{vocabulary} tokens"
        )
    if how == "coupled":
        ranked = log_q + ctx.noise[:, depth, None]
    elif how == "without_replacement":
        ranked = log_q + private_noise(ctx, depth, log_q.shape[1:])
    elif how == "with_replacement":
        return _independent(ctx, depth, log_q, width)
    else:
        ranked = log_q
    best, ids = vocab_top_k(ranked, width)
    if how == "top_and_sample":
        place = jnp.arange(width)[None]
        given = place < children[:, None] - 1  # [M, W]
        hidden = jnp.where(
            given[None], ids, vocabulary
        )  # beyond the vocabulary: dropped
        row = jnp.arange(log_q.shape[0])[:, None, None]
        node = jnp.arange(log_q.shape[1])[None, :, None]
        rest = log_q.at[row, node, hidden].set(-jnp.inf, mode="drop")
        rest = rest + private_noise(ctx, depth, log_q.shape[1:])
        sample, value = jnp.argmax(rest, axis=-1), jnp.max(rest, axis=-1)
        last = place == children[:, None] - 1
        ids = jnp.where(last[None], sample[..., None], ids)
        best = jnp.where(last[None], value[..., None], best)
    return ids.astype(jnp.int32), best
