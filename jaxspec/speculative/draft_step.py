"""Draft step of a speculative round."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.noise import Noise, draw_noise, private_keys
from jaxspec.core.precision import full_precision
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, DraftContext, num_extra_queries
from jaxspec.speculative.engine_config import EngineConfig
from jaxspec.speculative.state import SpecState, Variables
from jaxspec.speculative.trees.topology import Topology
from jaxspec.typing import Array, Int, PyTree


@register_dataclass
@dataclass(frozen=True)
class Drafted:
    """Result of `draft`, and input of `verify`.

    Attributes:
      draft: draft; all tokens are in the vocabulary, and every valid node descends from
        the root.
      topology: tables of the tree of the draft.
      drafter: state of the drafter after the proposal.
      noise: noise of the positions after the root, shared by drafter and verifier.
    """

    draft: Draft
    topology: Topology
    drafter: PyTree
    noise: Noise


@full_precision
def draft(engine: EngineConfig, variables: Variables, state: SpecState) -> Drafted:
    """Drafts tokens that may follow the last one of each sequence.

    Args:
      engine: static settings.
      variables: arrays of the batch; only `drafter` is read.
      state: state of the batch.

    Raises:
      ConfigError: the draft does not fit the tree.
    """
    tree, vocab_size = engine.tree, engine.target.vocab_size
    root = newest_token(state)
    position = state.start + state.length - 1
    positions = position[:, None] + 1 + jnp.arange(engine.path_length)[None]
    greedy = state.sampling.temperature == 0
    noise = draw_noise(state.keys, positions, tree.size, vocab_size, greedy)
    if engine.drafter is None:
        proposal, drafter = _root_alone(engine, root), state.drafter
    else:
        ctx = DraftContext(
            root=root,
            tokens=state.tokens,
            position=position,
            index=state.length,
            noise=noise.coupled,
            keys=private_keys(state.keys, position),
            sampling=state.sampling,
            tree=tree,
            selection=engine.candidates,
            order=engine.order,
        )
        proposal, drafter = engine.drafter.propose(
            variables.drafter, state.drafter, ctx
        )
    proposal, topology = proposal.checked(tree, vocab_size)
    proposal = replace(proposal, tokens=proposal.tokens.at[:, 0].set(root))
    _check_extra_queries(engine, proposal)
    return Drafted(proposal, topology, drafter, noise)


def newest_token(state: SpecState) -> Int[Array, "B"]:
    """Last token of each sequence, which the target has not read yet."""
    return jnp.take_along_axis(state.tokens, state.length[:, None] - 1, 1)[:, 0]


def _root_alone(engine: EngineConfig, root: Int[Array, "B"]) -> Draft:
    """Draft without drafted tokens, for plain decoding."""
    batch = root.shape[0]
    log_q = jnp.zeros((batch, 0, engine.target.vocab_size), jnp.float32)
    valid = jnp.ones((batch, 1), bool)
    return Draft(root[:, None], valid, log_q, selection=engine.candidates)


def _check_extra_queries(engine: EngineConfig, proposal: Draft) -> None:
    queries = proposal.extra
    actual = queries.tokens.shape[1] if queries else 0
    expected = num_extra_queries(engine.drafter, engine.tree)
    if actual != expected:
        raise ConfigError(
            f"the draft has {actual} extra queries; the drafter's num_extra_queries is "
            f"{expected}"
        )
