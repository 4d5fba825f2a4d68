"""Prompts of a bundle from the names, numbers and texts that a caller gives."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxspec.config.orders import order_of
from jaxspec.config.token_kinds import row_ends
from jaxspec.core.numbers import whole
from jaxspec.errors import ConfigError
from jaxspec.pipeline.bundle import Bundle, resolve_classes
from jaxspec.pipeline.captions import read_captions
from jaxspec.pipeline.prompts import Prompts, spread_classes
from jaxspec.pipeline.vocabulary import tokens_of, vocabulary_of

# A class by number or name, or a mixture of classes by their weights.
ClassLabel = int | str | Mapping[int | str, float]


def read_prompts(
    bundle: Bundle, values: Sequence[Any], *, chat: bool | None = None
) -> Prompts:
    """Prompts as the bundle's prior takes them.

    Args:
      bundle: models.
      values: class names or numbers, or weights by class name or number; captions; or
        texts to continue, by the condition of the prior.
      chat: whether texts are messages to answer; None for what the model was trained
        for.

    Raises:
      ConfigError: there is none, a class is unknown, or a text is empty.
      CheckpointError: captions cannot be encoded.
    """
    condition = bundle.prior.config.condition
    if condition == "class" and any(isinstance(value, Mapping) for value in values):
        return Prompts.from_class_weights(class_weights(bundle, values))
    if condition == "class":
        names = np.asarray(values, object).tolist()
        return Prompts.from_classes(resolve_classes(bundle, names))
    if condition == "none":
        return Prompts.from_tokens(tokens_of(vocabulary_of(bundle), values, chat))
    if not len(values):
        raise ConfigError("there is nothing to generate; give at least one prompt")
    captions = read_captions(bundle.text_encoder, list(values), bundle.names)
    return Prompts.from_captions(captions)


def class_weights(bundle: Bundle, labels: Sequence[ClassLabel]) -> np.ndarray:
    """Weights float32 [B, classes] of labels, of which some are mixtures of classes.

    Raises:
      ConfigError: a class is unknown.
    """
    weights = np.zeros((len(labels), bundle.prior.config.classes), np.float32)
    for row, label in zip(weights, labels, strict=True):
        mixture = label if isinstance(label, Mapping) else {label: 1.0}
        ids = resolve_classes(bundle, list(mixture))
        try:
            np.add.at(row, ids, np.array(list(mixture.values()), np.float32))
        except (TypeError, ValueError):
            raise ConfigError(
                f"the weights of {mixture!r} are no numbers; write "
                "{'Apple 10': 0.5, 'Cherry 1': 0.5}"
            ) from None
    return weights


def resolve_prefix(
    bundle: Bundle, prompts: Prompts, prefix: Any, prefix_rows: int | None
) -> Prompts:
    """Prompts with the image tokens that are continued.

    Args:
      bundle: models.
      prompts: prompts of the images.
      prefix: image tokens, ints [B, P]; None for none.
      prefix_rows: number of image rows of `prefix` that are kept, of levels in coarse
        order, of token maps of a next-scale model, or of tokens in a row; None for all.

    Raises:
      ConfigError: the tokens do not fit the prompts or the model, see
        `Prompts.with_prefix`, have fewer rows, or are in an order without rows.
    """
    if prefix is None:
        if prefix_rows is not None:
            raise ConfigError(
                f"prefix_rows={prefix_rows} needs image tokens to keep: prefix=tokens"
            )
        return prompts
    if bundle.family in ("mar", "masked"):
        raise ConfigError(
            f"bundle '{bundle.name}' makes tokens in any order and continues no "
            "image; leave out the prefix"
        )
    if prefix_rows is not None:
        if order_of(bundle.tokenizer.config) == "halton":
            raise ConfigError(
                f"bundle '{bundle.name}' makes tokens in Halton order, in which an "
                "image has no first rows; name a model in raster order, such as "
                "fruits64"
            )
        prefix, rows = np.asarray(prefix), int(whole("prefix_rows", prefix_rows))
        ends = row_ends(bundle.tokenizer.config)
        count = ends[min(rows, len(ends)) - 1] if rows > 0 else 0
        if prefix.ndim == 2 and prefix.shape[1] < count:
            raise ConfigError(
                f"prefix_rows={prefix_rows} are {count} tokens; the prefix has "
                f"{prefix.shape[1]}"
            )
        prefix = prefix[..., :count]
    return prompts.with_prefix(prefix, bundle.prior.config)


def resolve_prompts(
    bundle: Bundle,
    class_labels: Sequence[ClassLabel] | None,
    prompts: Sequence[str] | None,
    *,
    chat: bool | None = None,
    count: int | None = None,
    names: tuple[str, str] = ("`class_labels`", "`prompts`"),
) -> Prompts:
    """Prompts from two arguments, of which the bundle takes one.

    Args:
      bundle: models.
      class_labels: numbers or names of classes, or weights by these, of a
        class-conditional model.
      prompts: captions, or texts to continue, of other models.
      chat: whether texts are messages to answer, see `read_prompts`.
      count: number of sequences, for which prompts are repeated; by default classes are
        spread, and captions are the bundle's examples. None for one sequence each.
      names: names of the two arguments, for messages.

    Raises:
      ConfigError: prompts and models do not go together.
      CheckpointError: captions cannot be encoded.
    """
    by_class = bundle.prior.config.condition == "class"
    values, other = (class_labels, prompts) if by_class else (prompts, class_labels)
    if values is None and by_class and count is not None and other is None:
        values = spread_classes(bundle.prior.config.classes, count)
    captioned = bundle.prior.config.condition == "caption"
    if values is None and captioned and count is not None and other is None:
        values = bundle.examples or None
    if values is None or other is not None:
        raise ConfigError(f"bundle '{bundle.name}' takes {names[not by_class]} alone")
    if isinstance(values, (str, bytes)) or np.ndim(np.asarray(values, object)) != 1:
        name = names[not by_class].strip("`")
        raise ConfigError(f"`{name}` is a list, also for one image: {name}=[...]")
    if count is not None and len(values):
        values = [values[i % len(values)] for i in range(count)]
    return read_prompts(bundle, values, chat=chat)


def prompt_labels(bundle: Bundle, prompts: Prompts) -> list[str]:
    """Class name or caption of each sequence; empty for texts to continue."""
    if prompts.condition == "class" and np.ndim(prompts.values) == 2:
        return [_mixture_label(bundle, row) for row in prompts.values]
    if prompts.condition == "class":
        return [bundle.class_names[i] for i in np.asarray(prompts.values).tolist()]
    return list(prompts.texts)


def _mixture_label(bundle: Bundle, weights: np.ndarray) -> str:
    """Classes of a mixture with their weights."""
    ids = np.flatnonzero(weights)
    return " + ".join(f"{weights[i]:.3g} {bundle.class_names[i]}" for i in ids)
