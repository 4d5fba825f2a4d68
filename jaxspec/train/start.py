"""Checks of a checkpoint from which a training starts."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jaxspec.checkpoint import Checkpoint, named_leaves, params_digest
from jaxspec.checkpoint.pytrees import unflatten
from jaxspec.config import TokenizerConfig
from jaxspec.errors import ConfigError
from jaxspec.typing import Params


def check_kind(start: Checkpoint, kind: str) -> None:
    """Checks the kind of a checkpoint to start from.

    Raises:
      ConfigError: it is of another kind.
    """
    if start.kind != kind:
        raise ConfigError(
            f"--start holds a checkpoint of kind '{start.kind}'; choose one of kind "
            f"'{kind}'"
        )


def check_start(start: Checkpoint, kind: str, config: Any) -> None:
    """Checks that a training can start from a checkpoint.

    Raises:
      ConfigError: it is of another kind or configuration.
    """
    check_kind(start, kind)
    if start.config != config:
        raise ConfigError(
            f"the {kind} to start from has the configuration {start.config}; the one "
            f"to train has {config}"
        )


def check_decoder_alone(alone: bool, start: Checkpoint | None) -> None:
    """Checks that a training of the decoder alone starts from trained codes.

    Raises:
      ConfigError: it starts from nothing.
    """
    if alone and start is None:
        raise ConfigError(
            "decoder_alone needs a trained tokenizer, whose codes are kept: --start DIR"
        )


# Parts of a tokenizer on which its tokens do not depend, and on which images that are
# decoded from tokens do not.
_DECODER = ("decoder", "post_quant_conv", "pixels")
_ENCODER = ("encoder", "quant_conv")


def without(params: Params, left_out: Params) -> Params:
    """Parameters whose names are not among others."""
    return {k: x for k, x in params.items() if k not in left_out}


def with_codes_of(old: Params, new: Params) -> Params:
    """New parameters of a tokenizer, but the old ones that its tokens depend on."""
    return {k: new[k] if k in _DECODER else old[k] for k in new}


def trained_alone(params: Params) -> Params:
    """Parameters of a tokenizer on which its tokens do not depend."""
    return {k: x for k, x in params.items() if k in _DECODER}


# Layers at the ends of residual and attention blocks.
_LAST = ("/conv2/", "/proj_out/")


def deepened(start: Checkpoint, config: Any, params: Params) -> Checkpoint:
    """A trained tokenizer with more blocks in its decoder, which change nothing yet.

    Blocks are added behind those of each level, and their last layers are zeros. A
    checkpoint that differs in more than `decoder_blocks` is returned as it is.

    Args:
      start: trained tokenizer.
      config: configuration of the one to train.
      params: random parameters of that configuration.
    """
    old = start.config
    if not isinstance(old, TokenizerConfig) or not isinstance(config, TokenizerConfig):
        return start
    fewer = old.decoder_blocks < config.decoder_blocks
    if not fewer or replace(old, decoder_blocks=config.decoder_blocks) != config:
        return start
    trained = dict(named_leaves(start.params))
    leaves = {
        path: jnp.zeros_like(x) if any(name in path for name in _LAST) else x
        for path, x in named_leaves(params)
    }
    return replace(start, config=config, params=unflatten({**leaves, **trained}))


def encoder_of(params: Params) -> Params:
    """Parameters of a tokenizer on which images decoded from tokens do not depend."""
    return {k: x for k, x in params.items() if k in _ENCODER}


def start_digests(start: Checkpoint | None) -> tuple[str, ...]:
    """Digest of the initial parameters, for the identity of a training."""
    return () if start is None else (params_digest(start.params),)
