"""Selection of child tokens from a drafter's distribution."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.logits import process_logits
from jaxspec.core.vocab_parallel import sample_by_inverse_cdf, vocab_top_k
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import DraftContext
from jaxspec.speculative.trees.topology import gather_nodes
from jaxspec.typing import Array, Float, Int, PyTree


def drafter_log_probs(
    ctx: DraftContext, logits: Float[Array, "B M V"]
) -> Float[Array, "B M V"]:
    """Processes logits like the target's and normalizes them.

    Filtered tokens get -inf. NaN does too, so that a broken drafter still yields a
    tree.

    Raises:
      ConfigError: there are more or fewer logits than the target has tokens.
    """
    if logits.shape[-1] != ctx.noise.shape[-1]:
        raise ConfigError(
            f"the drafter has logits of {logits.shape[-1]} tokens, the target has "
            f"{ctx.noise.shape[-1]}; they must share a vocabulary"
        )
    log_q = jax.nn.log_softmax(process_logits(logits, ctx.sampling, ctx.order), axis=-1)
    return jnp.where(jnp.isnan(log_q), -jnp.inf, log_q)


def inherit(node_state: PyTree, parents: Array | np.ndarray) -> PyTree:
    """Copies the state of parents to their children.

    Args:
      node_state: states of the parents, arrays [B, parents, ...].
      parents: integer [1 or B, M], index of each child's parent in `node_state`.

    Returns:
      States of the children, arrays [B, M, ...].
    """
    index = jnp.asarray(parents)
    return jax.tree.map(lambda x: gather_nodes(x, index), node_state)


def _sample_independently(
    ctx: DraftContext, depth: int, log_q: Float[Array, "B M V"], width: int
):
    """Samples `width` children per node with replacement, by inverse CDF.

    Returns:
      Tokens, and their log-probabilities.
    """
    uniform = jnp.exp(-jnp.exp(-private_noise(ctx, depth, (log_q.shape[1], width))))
    sampled = (ctx.sampling.temperature > 0)[:, None, None]
    best = jnp.argmax(log_q, axis=-1)[..., None]
    ids = sample_by_inverse_cdf(jnp.exp(log_q), uniform)
    ids = jnp.where(sampled, ids, best).astype(jnp.int32)
    return ids, jnp.take_along_axis(log_q, ids, axis=-1)


def private_noise(
    ctx: DraftContext, counter: int | Array, shape: tuple[int, ...]
) -> Array:
    """Samples Gumbel noise that only the drafter uses; 0 for greedy sequences.

    Args:
      ctx: the round, whose `keys` are used.
      counter: number folded into the keys, such as a depth.
      shape: shape of a sequence's noise.

    Returns:
      Noise float32 [B, *shape].
    """

    def gumbel(key):
        key = jax.random.fold_in(key, counter)
        return jax.random.gumbel(key, shape, jnp.float32, mode="high")

    noise = jax.vmap(gumbel)(ctx.keys)
    sampled = ctx.sampling.temperature.reshape(-1, *(1,) * len(shape)) > 0
    return jnp.where(sampled, noise, 0.0)


def rank_tokens(
    values: Float[Array, "B M V"], width: int
) -> tuple[Int[Array, "B M W"], Float[Array, "B M W"]]:
    """The `W` tokens of the greatest values, and these values.

    Args:
      values: numbers that rank the tokens.
      width: number of tokens, `W`.

    Raises:
      ConfigError: there are fewer tokens.
    """
    if width > values.shape[-1]:
        raise ConfigError(
            f"the tree asks for {width} children of one node, but there are only "
            f"{values.shape[-1]} tokens"
        )
    values, ids = vocab_top_k(values, width)
    return ids.astype(jnp.int32), values


def choose_children(
    ctx: DraftContext,
    depth: int,
    log_q: Float[Array, "B M V"],
    width: int,
    children: Int[Array, "M"],
) -> tuple[Int[Array, "B M W"], Float[Array, "B M W"]]:
    """Selects `W` children for each of `M` nodes of one depth, by `ctx.selection`.

    Args:
      ctx: the round.
      depth: depth of the nodes.
      log_q: float32 [B, M, V], the drafter's log-probabilities after the nodes.
      width: most children of a node, `W`.
      children: integer [M], number of children each node has; the last one is the
        sample of "top_and_sample".

    Returns:
      Tokens, and the values that rank them; -inf where there is no such token.
    """
    selection, vocabulary = ctx.selection, log_q.shape[-1]
    if selection == "with_replacement":
        return _sample_independently(ctx, depth, log_q, width)
    if selection == "coupled":
        ranked = log_q + ctx.noise[:, depth, None]
    elif selection == "without_replacement":
        ranked = log_q + private_noise(ctx, depth, log_q.shape[1:])
    else:
        ranked = log_q
    ids, best = rank_tokens(ranked, width)
    if selection == "top_and_sample":
        rank = jnp.arange(width)[None]
        is_top = rank < children[:, None] - 1  # [M, W]
        # Indices beyond the vocabulary are dropped.
        top = jnp.where(is_top[None], ids, vocabulary)
        sequence = jnp.arange(log_q.shape[0])[:, None, None]
        node = jnp.arange(log_q.shape[1])[None, :, None]
        rest = log_q.at[sequence, node, top].set(-jnp.inf, mode="drop")
        rest = rest + private_noise(ctx, depth, log_q.shape[1:])
        sample, value = jnp.argmax(rest, axis=-1), jnp.max(rest, axis=-1)
        last = rank == children[:, None] - 1
        ids = jnp.where(last[None], sample[..., None], ids)
        best = jnp.where(last[None], value[..., None], best)
    return ids.astype(jnp.int32), best
