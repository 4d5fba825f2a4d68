"""Training of the head that predicts which tokens are final (Learn2PD)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.masked.generator import MaskedGenerator
from jaxspec.masked.policies.stop_filter import StopFilter
from jaxspec.masked.state import MaskedVariables
from jaxspec.typing import Array, BatchKeys, Bool, Float, Params, PyTree


def final_tokens(
    generator: MaskedGenerator,
    variables: MaskedVariables,
    prompt: PyTree,
    *,
    sampling: Sampling,
    keys: BatchKeys,
) -> tuple[Float[Array, "n B T"], Bool[Array, "n B T"], Bool[Array, "n B T"]]:
    """Generates sequences without a filter, and records what one would have read.

    Args:
      generator: generator with a `StopFilter`, whose own policy decides here.
      variables: parameters of the model.
      prompt: prompts of the sequences.
      sampling: sampling settings; greedy ones in the paper.
      keys: typed keys of the sequences.

    Raises:
      ConfigError: the policy of the generator is no `StopFilter`.

    Returns:
      Of each of `n` steps: what the filter reads; tokens that equal those of the end;
      and tokens that are masked before the step.
    """
    chosen = generator.policy
    if not isinstance(chosen, StopFilter):
        raise ConfigError("final_tokens needs a generator whose policy is a StopFilter")
    plain = replace(generator, policy=chosen.policy)
    state = plain.init(variables, prompt, sampling=sampling, keys=keys)

    def step(state, _):
        view, _, _ = plain.look(variables, state)
        record = chosen.confidence(view), view.tokens, ~state.known
        return plain.step(variables, state), record

    state, (confidence, tokens, masked) = jax.lax.scan(
        step, state, None, length=plain.schedule.steps
    )
    return confidence, tokens == state.tokens[None], masked


def train_stop_filter(
    key: Array,
    stop_filter: StopFilter,
    traces: tuple[Array, Array, Array],
    *,
    steps: int = 400,
    learning_rate: float = 3e-3,
    width: int = 64,
) -> tuple[Params, Float[Array, "n"]]:
    """Trains a filter by binary cross-entropy over the masked tokens of all steps.

    Args:
      key: random key of the initial parameters; consumed.
      stop_filter: the filter.
      traces: result of `final_tokens`.
      steps: steps of the training, each on all traces.
      learning_rate: learning rate of Adam.
      width: width of the network.

    Returns:
      Parameters, and the loss of each step.
    """
    confidence, final, masked = (x.reshape(-1, x.shape[-1]) for x in traces)
    weight = masked.astype(jnp.float32)
    optimizer = optax.adam(learning_rate)

    def loss_of(params):
        scores = stop_filter.scores(params, confidence)
        losses = optax.sigmoid_binary_cross_entropy(scores, final)
        return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1.0)

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(loss_of)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    params = stop_filter.init(key, width)
    (params, _), losses = jax.lax.scan(
        step, (params, optimizer.init(params)), None, length=steps
    )
    return params, losses
