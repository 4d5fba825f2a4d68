"""DFlash training: blocks of masks after random anchors (arXiv 2602.06036)."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.common.training import DrafterOutputs, TeacherOutputs
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig, append_to
from jaxspec.nn.layers import head_scores
from jaxspec.typing import Array, Bool, Int, Params

# Blocks sampled in each sequence.
ANCHORS = 32


def anchored_mask(
    anchors: Int[Array, "B M"], context: int, config: DFlashConfig
) -> Bool[Array, "B queries S"]:
    """Attention mask of the queries of `M` blocks, with `S = context + M G` keys.

    A query attends to the context strictly before its anchor and to its own block,
    causally or as a whole, and never to another block.

    Args:
      anchors: int32 [B, M], positions of the anchors.
      context: number of context keys, which come before those of the blocks.
      config: configuration of the drafter.
    """
    queries = anchors.shape[1] * config.block_size
    anchor = jnp.repeat(anchors, config.block_size, axis=1)[..., None]
    slot = jnp.arange(context)[None, None]
    past = slot < anchor
    if config.window:
        past &= slot >= anchor - config.window
    block, offset = np.divmod(np.arange(queries), config.block_size)
    same_block = block[:, None] == block[None]
    if config.causal:
        same_block &= offset[:, None] >= offset[None]
    same_block = jnp.broadcast_to(same_block, (anchors.shape[0], queries, queries))
    return jnp.concatenate([past, same_block], axis=-1)


def dflash_outputs(
    drafter: DFlash, drafter_params: Params, teacher: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """Predicts one block after each sampled anchor.

    Args:
      drafter: static functions of the drafter.
      drafter_params: parameters of the block network.
      teacher: sequences with the target's logits and features.
      key: random key for the anchors; consumed.
    """
    config, size = drafter.config, drafter.config.block_size
    batch, length = teacher.tokens.shape
    prefix = drafter.target.prefix_length
    # Anchors are absolute positions of tokens that have at least one successor.
    key, refine_key = jax.random.split(key)
    anchors = jax.random.randint(key, (batch, ANCHORS), prefix, length - 1, jnp.int32)
    offset = jnp.arange(size)[None, None]
    positions = anchors[..., None] + offset  # of each query
    valid = positions + 1 < length
    positions = jnp.minimum(positions, length - 2)
    tokens = jnp.take_along_axis(teacher.tokens, anchors, axis=1)

    network = drafter.network(drafter_params)
    order = jnp.broadcast_to(jnp.arange(length), (batch, length))
    contexts = network.context(teacher.features, drafter.angles(order))
    params = drafter.with_target_params(drafter_params, teacher.params)
    embedding = params["embedding"]
    path = None
    if config.refinements:
        # Half of the blocks read the data's tokens, as refined drafts read the
        # tokens of the pass before.
        refined = jax.random.bernoulli(refine_key, jnp.float32(0.5), (batch, ANCHORS))
        inner = jnp.take_along_axis(
            teacher.tokens, positions[..., 1:].reshape(batch, -1), axis=1
        )
        path = embedding[inner.reshape(batch, ANCHORS, size - 1)]
        path = jnp.where(refined[..., None, None], path, 0.0)
    above = None
    if config.above:
        index = anchors[..., None] + 1 - prefix + offset
        above = drafter.embed_above(params, teacher.tokens[:, prefix:], index)
    h = network.block_input(embedding[tokens], path, above)
    block_positions = (anchors[..., None] + offset).reshape(batch, -1)
    h = network.block(
        h.reshape(batch, -1, h.shape[-1]),
        drafter.angles(block_positions),
        anchored_mask(anchors, length, config),
        [append_to(past) for past in contexts],
    )
    h = h.reshape(batch, ANCHORS, size, -1)
    if config.same_place:  # a query predicts its own token, so the anchor's is dropped
        h, positions, valid = h[:, :, 1:], positions[..., :-1], valid[..., :-1]
    logits = head_scores(params["head"], h)
    before = jnp.take_along_axis(teacher.tokens, positions.reshape(batch, -1), axis=1)
    before = before.reshape(positions.shape)
    if config.markov_rank:
        logits += network.markov(before)
    confidence = network.confidence(h, before) if config.confidence else None
    return DrafterOutputs(
        logits, positions + 1, valid, jnp.zeros((), jnp.float32), confidence
    )
