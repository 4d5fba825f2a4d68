"""Distillation of a masked model to half as many steps (SDTT)."""

import jax
import jax.numpy as jnp

from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.typing import Array, Bool, Float, Int, Params, PyTree


def step_distillation_loss(
    model: MaskedDiffusion,
    params: Params,
    teacher: Params,
    tokens: Int[Array, "B T"],
    prompts: PyTree,
    null: Bool[Array, "B"],
    key: Array,
    *,
    steps: int,
) -> Float[Array, ""]:
    """Reverse divergence from what a teacher predicts in two steps, a masked token.

    A share `t` of the tokens is masked, `t` being a time of the teacher with at least
    two steps left. The teacher takes two of its steps by ancestral sampling, linear in
    time as those of `Bernoulli` with a linear schedule. The
    student is compared, at every masked token, with the prediction by which the teacher
    made it known: that of the first step, or that of the second for all others (SDTT,
    arXiv 2410.21035).

    Args:
      model: static functions of both models.
      params: parameters of the student.
      teacher: parameters of the teacher, which get no gradient.
      tokens: training sequences, int32.
      prompts: prompts of the sequences.
      null: sequences that get the null condition.
      key: random key; consumed.
      steps: number of steps of the teacher, at least 2.
    """
    time_key, mask_key, reveal_key, sample_key = jax.random.split(key, 4)
    batch = len(tokens)
    time = jax.random.randint(time_key, (batch, 1), 2, steps + 1).astype(jnp.float32)
    time = time / steps
    masked = jax.random.uniform(mask_key, tokens.shape, jnp.float32) < time
    seen = jnp.where(masked, model.mask_token, tokens)

    def log_p(params, tokens):
        logits = model.score(params, prompts, tokens, null=null)
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    first = log_p(teacher, seen)
    chance = jax.random.uniform(reveal_key, tokens.shape, jnp.float32)
    revealed = masked & (chance < 1 / (steps * time))
    drawn = jax.random.categorical(sample_key, first).astype(tokens.dtype)
    second = log_p(teacher, jnp.where(revealed, drawn, seen))
    target = jax.lax.stop_gradient(jnp.where(revealed[..., None], first, second))
    log_q = log_p(params, seen)
    divergence = jnp.sum(jnp.exp(log_q) * (log_q - target), axis=-1)
    total = jnp.sum(jnp.where(masked, divergence, 0.0))
    return total / jnp.maximum(jnp.sum(masked.astype(jnp.float32)), 1.0)
