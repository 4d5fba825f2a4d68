"""A model of any order, set to one."""

from dataclasses import replace
from typing import Any

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TokenizerConfig
from jaxspec.config.orders import Order, check_order
from jaxspec.errors import ConfigError
from jaxspec.pipeline.bundle import Bundle


def with_order(bundle: Bundle, order: Order) -> Bundle:
    """The models of a bundle, generating the tokens of an image in another order.

    A drafter that was trained in one order is left out in another.

    Args:
      bundle: models; the prior was trained with `objective="any_order"`.
      order: order of the tokens of a grid, see `config.orders`.

    Raises:
      ConfigError: the order is unknown, or the prior was trained in one order alone.
    """
    check_order(order)
    if order == getattr(bundle.prior.config, "order", None):
        return bundle
    if bundle.prior.metadata.get("objective") != "any_order":
        raise ConfigError(
            f"bundle '{bundle.name}' was trained in one order; order={order!r} needs "
            "a prior trained with objective='any_order'"
        )
    prior, tokenizer = (
        replace(part, config=replace(part.config, order=order))
        for part in (bundle.prior, bundle.tokenizer)
    )
    trained = replace(bundle.trained or prior.config, order=order)
    return replace(
        bundle, prior=prior, image_tokenizer=tokenizer, drafter=None, trained=trained
    )


def in_order_of(tokenizer: Checkpoint, prior: Any) -> Checkpoint:
    """A tokenizer of a grid, making its tokens in the order of a model.

    Args:
      tokenizer: tokenizer of any kind; only those of a grid have an order.
      prior: configuration of the model.
    """
    order = getattr(prior, "order", None)
    if not isinstance(tokenizer.config, TokenizerConfig) or order is None:
        return tokenizer
    return replace(tokenizer, config=replace(tokenizer.config, order=order))
