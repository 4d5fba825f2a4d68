"""Tokens per target call of a drafter in training, with the verifier of generation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.noise import seed_key
from jaxspec.core.sampling import Sampling, active_steps
from jaxspec.data.batches import evenly_spaced
from jaxspec.data.image_tokens import Sequences
from jaxspec.drafters.combine.jacobi_mix import JacobiMix
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.trees.parsing import tree_for
from jaxspec.train.settings import DrafterTrainingConfig
from jaxspec.typing import Params, PyTree

# Weight of the target's last logits in drafts of images, see `JacobiMix`; measured with
# the embedded models at CFG scales 1 to 3, where .3 to .5 differ little.
JACOBI_WEIGHT = 0.4
# The tree of LANTERN's figures has 57 nodes below its root.
TREE = "optimal-58"
CFG_SCALE = 2.0
_SEQUENCES = 8
_TEXT_PROMPT, _TEXT_LENGTH = 16, 64


def make_acceptance(
    drafter: Any, config: DrafterTrainingConfig, heldout: Sequences
) -> Callable[[Params, Params], float]:
    """Function from the parameters of drafter and target to tokens per target call.

    Eight sequences are generated at temperature 1, of images at CFG scale 2 (or the
    largest trained on, if that is less), of texts after the beginning of held-out ones.
    A sequence's first token comes from the prompt's pass and is not counted.

    Args:
      drafter: static functions of the drafter.
      config: settings of the training.
      heldout: held-out sequences.
    """
    target, tree = drafter.target, tree_for(drafter, TREE)
    if weight := jacobi_weight(target):
        drafter = JacobiMix(drafter, target.vocab_size, weight)
    prompt, length = _prompts(target, heldout)
    scale = min(CFG_SCALE, config.max_cfg_scale) if target.condition != "none" else 1.0
    sampling = Sampling.create(cfg_scale=scale)
    engine = Engine(
        Transformer(target).as_target(cfg=scale != 1.0),
        length,
        drafter,
        tree,
        order=active_steps(sampling),
    )

    @jax.jit
    def run(drafter_params, target_params):
        variables = engine.variables(target=target_params, drafter=drafter_params)
        keys = seed_key(config.seed)
        out = engine.generate(variables, prompt, sampling=sampling, keys=keys)
        return jnp.sum(out.lengths - 1) / jnp.sum(out.stats.calls - 1)

    return lambda drafter_params, target_params: float(
        run(drafter_params, target_params)
    )


def jacobi_weight(target: Any) -> float:
    """Weight of `JacobiMix` for drafters of a target: 0 for texts."""
    return JACOBI_WEIGHT if target.condition != "none" else 0.0


def _prompts(target: Any, heldout: Sequences) -> tuple[PyTree, int]:
    """Prompts of eight sequences, and the number of tokens after them."""
    chosen = evenly_spaced(len(heldout), _SEQUENCES)
    if target.condition != "none":
        return heldout.prompts(chosen), target.sequence_length
    prompts = heldout.tokens[0, chosen, :_TEXT_PROMPT].astype(np.int32)
    room = target.sequence_length - _TEXT_PROMPT
    return prompts, min(_TEXT_LENGTH, room)
