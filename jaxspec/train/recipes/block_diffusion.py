"""Random anchors, each followed by a block of masks (DFlash, arXiv 2602.06036)."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import DFlashConfig
from jaxspec.drafters.block_diffusion import DFlash
from jaxspec.drafters.block_network import append_to
from jaxspec.nn.layers import head_scores
from jaxspec.train.recipes.lesson import DrafterOutputs, TeacherOutputs
from jaxspec.typing import Array, Bool, Int, Params

# Blocks drawn in every sequence.
ANCHORS = 32


def anchored_mask(
    anchors: Int[Array, "B M"], context: int, config: DFlashConfig
) -> Bool[Array, "B U S"]:
    """Who the rows of all blocks may see, `U = M G`, `S = context + U`.

    Context strictly before the anchor, and the own block (causally or whole); never
    another block.
    """
    rows = anchors.shape[1] * config.block_size
    anchor = jnp.repeat(anchors, config.block_size, axis=1)[..., None]
    slot = jnp.arange(context)[None, None]
    past = slot < anchor
    if config.window:
        past &= slot >= anchor - config.window
    block, place = np.divmod(np.arange(rows), config.block_size)
    own = block[:, None] == block[None]
    if config.causal:
        own &= place[:, None] >= place[None]
    own = jnp.broadcast_to(own, (anchors.shape[0], rows, rows))
    return jnp.concatenate([past, own], axis=-1)


def block_guesses(
    drafter: DFlash, own: Params, lesson: TeacherOutputs, key: Array
) -> DrafterOutputs:
    """One block behind each anchor; `key` draws the anchors and is consumed."""
    config, size = drafter.config, drafter.config.block_size
    rows, total = lesson.tokens.shape
    prefix = drafter.target.prefix_length
    # Anchors are absolute positions of tokens that have at least one successor.
    key, tell_key = jax.random.split(key)
    anchors = jax.random.randint(key, (rows, ANCHORS), prefix, total - 1, jnp.int32)
    row = jnp.arange(size)[None, None]
    read = anchors[..., None] + row  # of each row's own token
    present = read + 1 < total
    read = jnp.minimum(read, total - 2)
    tokens = jnp.take_along_axis(lesson.tokens, anchors, axis=1)

    network = drafter.network(own)
    positions = jnp.broadcast_to(jnp.arange(total), (rows, total))
    contexts = network.context(lesson.features, drafter.angles(positions))
    embedding = lesson.params["embedding"]["embedding"]
    path = None
    if config.refinements:
        # Half of the blocks read the tokens, as they will when guesses are refined.
        told = jax.random.bernoulli(tell_key, jnp.float32(0.5), (rows, ANCHORS))
        inner = jnp.take_along_axis(
            lesson.tokens, read[..., 1:].reshape(rows, -1), axis=1
        )
        path = embedding[inner.reshape(rows, ANCHORS, size - 1)]
        path = jnp.where(told[..., None, None], path, 0.0)
    above = None
    if config.above:
        index = anchors[..., None] + 1 - prefix + row
        bound = drafter.with_target_params(own, lesson.params)
        above = drafter.embed_above(bound, lesson.tokens[:, prefix:], index)
    h = network.block_input(embedding[tokens], path, above)
    block_positions = (anchors[..., None] + row).reshape(rows, -1)
    h = network.block(
        h.reshape(rows, -1, h.shape[-1]),
        drafter.angles(block_positions),
        anchored_mask(anchors, total, config),
        [append_to(past) for past in contexts],
    )
    h = h.reshape(rows, ANCHORS, size, -1)
    if config.same_place:  # a row stands for what the row before it stands for else
        h, read, present = h[:, :, 1:], read[..., :-1], present[..., :-1]
    logits = head_scores(drafter.with_target_params(own, lesson.params)["head"], h)
    before = jnp.take_along_axis(lesson.tokens, read.reshape(rows, -1), axis=1)
    before = before.reshape(read.shape)
    if config.markov_rank:
        logits += network.markov(before)
    confidence = network.confidence(h, before) if config.confidence else None
    return DrafterOutputs(
        logits, read + 1, present, jnp.zeros((), jnp.float32), confidence
    )
