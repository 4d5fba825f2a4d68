"""Generators of a bundle, by the family of its model."""

from collections.abc import Callable
from typing import Any

import jax

from jaxspec.config import TransformerConfig
from jaxspec.core.diffusion import DiffusionSchedule
from jaxspec.core.generator import Generator
from jaxspec.core.sampling import Step, active_steps
from jaxspec.errors import ConfigError
from jaxspec.mar import MARGenerator, MARVariables, UnmaskingSchedule
from jaxspec.mar.generator import check_settings
from jaxspec.masked.generator import MaskedGenerator
from jaxspec.masked.policies.named import DEFAULT_POLICY, named_policy
from jaxspec.masked.schedule import MaskingSchedule
from jaxspec.masked.state import MaskedVariables
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.next_scale.plans import one_model
from jaxspec.next_scale.sampling import VAR_ORDER, ScaleSampling
from jaxspec.next_scale.state import NextScaleVariables
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.engine import make_engine, make_variables
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.tokenizers.multi_scale.scales import QUANTIZER

# Published numbers of steps of MAR and of the chains of its head, and of MaskGIT.
MAR_STEPS, MAR_HEAD_STEPS, MASKED_STEPS = 64, 100, 12
# Settings that some families alone have, with the value that stands for none.
_SETTINGS = {
    "steps": (None, ("mar", "masked"), "masked models"),
    "head_steps": (None, ("mar",), "MAR"),
    "solver": ("ancestral", ("mar",), "MAR"),
    "policy": (None, ("masked",), "masked models with a vocabulary"),
    "schedule": (None, ("masked",), "masked models with a vocabulary"),
}


def make_generator(
    bundle: Bundle,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter | None = None,
    *,
    prompt_length: int = 0,
) -> tuple[Generator[Any], Any]:
    """Makes the generator of a bundle's model, and its variables.

    Args:
      bundle: models.
      config: generation settings.
      tree: shape of the drafts; the root alone for plain decoding.
      loaded: drafter; None for the bundle's own.
      prompt_length: tokens that prompts take of the model's sequence length.

    Raises:
      ConfigError: settings, tree and models do not go together.
    """
    family = bundle.family
    if family != "autoregressive" and (tree.size > 1 or loaded is not None):
        raise ConfigError(
            f"bundle '{bundle.name}' does not generate token by token, and drafters "
            "draft tokens; leave out the drafter"
        )
    for name, (none, families, kind) in _SETTINGS.items():
        if family not in families and getattr(config, name) != none:
            raise ConfigError(
                f"{name} is a setting of {kind}, which bundle '{bundle.name}' is not; "
                "leave it out"
            )
    return GENERATORS[family](bundle, config, tree, loaded, prompt_length)


def _autoregressive(bundle, config, tree, loaded, prompt_length):
    engine = make_engine(bundle, config, tree, loaded, prompt_length=prompt_length)
    return engine, make_variables(engine, bundle, loaded)


def _next_scale(bundle, config, tree, loaded, prompt_length):
    model, quantizer = bundle.prior.model, bundle.tokenizer
    scales = quantizer.model.scales
    generator = one_model(
        model,
        scales,
        sampling=ScaleSampling(len(scales), order=_in_use(config)),
        cfg=config.cfg_scale != 1.0,
        limit=config.max_new_tokens,
        prefix=prompt_length,
    )
    quantizer_params = {k: quantizer.params[k] for k in QUANTIZER}
    if bundle.mesh:  # on the host, so that every device may take them
        quantizer_params = jax.device_get(quantizer_params)
    return generator, NextScaleVariables((bundle.prior.params,), quantizer_params)


def _mar(bundle, config, tree, loaded, prompt_length):
    model = bundle.prior.model
    length, trained = model.config.sequence_length, model.config.diffusion_steps
    steps = min(MAR_STEPS, length) if config.steps is None else config.steps
    first, last = config.head_steps or (min(MAR_HEAD_STEPS, trained),) * 2
    for name, value, most in (("steps", steps, length), ("head_steps", first, trained),
                              ("head_steps", last, trained)):  # fmt: skip
        if value > most:
            raise ConfigError(f"{name}={value}; bundle '{bundle.name}' has {most}")
    if config.max_new_tokens not in (None, length):
        raise ConfigError(
            f"max_new_tokens={config.max_new_tokens}: bundle '{bundle.name}' makes all "
            f"{length} tokens of an image, in random order"
        )
    check_settings(config.sampling(), config.stopping(length))
    generator = MARGenerator(
        model,
        UnmaskingSchedule(length, steps),
        DiffusionSchedule(trained, first, config.solver),
        last_count=last,
        cfg=config.cfg_scale != 1.0,
    )
    return generator, MARVariables(bundle.prior.params)


def policy_of(config: TransformerConfig) -> str:
    """Default policy of a masked model."""
    return "confidence-0" if config.condition == "none" else DEFAULT_POLICY


def schedule_of(config: TransformerConfig) -> str:
    """Default schedule of a masked model."""
    return "linear" if config.condition == "none" else "cosine"


def _masked(bundle, config, tree, loaded, prompt_length):
    prior = bundle.prior
    model = MaskedDiffusion(prior.model, bool(prior.metadata.get("shifted")))
    room = prior.config.sequence_length - prompt_length
    if config.cfg_interval >= 0:
        raise ConfigError("every step is guided: leave out cfg_interval")
    text = prior.config.condition == "none"
    tokens = config.max_new_tokens or room
    if text:
        tokens = min(tokens, room)
        if config.cfg_scale != 1.0:
            raise ConfigError(
                f"cfg_scale={config.cfg_scale}: bundle '{bundle.name}' makes text, "
                "which has no unconditional branch; leave it out"
            )
    if not text and tokens != room:
        raise ConfigError(
            f"max_new_tokens={tokens}: bundle '{bundle.name}' makes all {room} tokens "
            "of an image together"
        )
    # Texts by default as LLaDA's: a token a step, the most certain one.
    steps = config.steps or (tokens if text else min(MASKED_STEPS, tokens))
    if steps > tokens:
        raise ConfigError(f"steps={steps}; bundle '{bundle.name}' has {tokens} tokens")
    generator = MaskedGenerator(
        model,
        MaskingSchedule(tokens, steps, config.schedule or schedule_of(prior.config)),
        named_policy(config.policy or policy_of(prior.config), tokens),
        cfg=config.cfg_scale != 1.0,
        order=active_steps(config.sampling()),
    )
    return generator, MaskedVariables(prior.params)


def _in_use(config: GenerationConfig) -> tuple[Step, ...]:
    """Steps of VAR's order that change logits."""
    used = active_steps(config.sampling())
    return tuple(step for step in VAR_ORDER if step in used)


# A family of models that generates in another way is added here; see `Bundle.family`.
GENERATORS: dict[str, Callable[..., tuple[Generator[Any], Any]]] = {
    "autoregressive": _autoregressive,
    "masked": _masked,
    "next_scale": _next_scale,
    "mar": _mar,
}
