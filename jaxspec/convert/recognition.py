"""Recognition of model families from tensor names and `config.json`."""

from collections.abc import Iterator
from dataclasses import replace

from jaxspec.convert.families import FAMILIES
from jaxspec.convert.family import Family
from jaxspec.convert.reading.open import with_weights
from jaxspec.convert.reading.sets import PLAIN
from jaxspec.convert.reading.source import Source
from jaxspec.convert.reading.wrappers import strip_leading_components
from jaxspec.errors import ConfigError


def recognize(
    source: Source, name: str | None = None, weights: str | None = None
) -> list[tuple[Family, Source]]:
    """Returns the families of a source's parts, each with the source to read.

    The returned sources hold the set of weights of that family, without prefixes that
    wrappers put before the names of the layout.

    Args:
      source: source as `open_source` returns it.
      name: name of the family, if the user chose one.
      weights: name of the set of weights, if the user chose one; by default the one
        that the family's official loader takes.

    Raises:
      ConfigError: no family recognizes the source.
      DataError: there is no such set of weights, or the choice is ambiguous.
    """
    plain = with_weights(source, PLAIN, weights)
    if name is not None:
        families = [FAMILIES[name]]
    else:
        recognized = (families_of(variant) for variant in _without_prefixes(plain))
        families = next(filter(None, recognized), [])
    if not families:
        names = ", ".join(list(plain.tensors)[:3])
        raise ConfigError(
            f"'{source.name}' is of no known family (its tensors: {names}, ...; its "
            f"model_type: {source.config.get('model_type')}); name one with --family: "
            f"{', '.join(FAMILIES)}"
        )
    result = []
    for family in families:
        selected = with_weights(source, family.weights, weights)
        variants = filter(family.detect, _without_prefixes(selected))
        result.append((family, next(variants, selected)))
    return result


def families_of(source: Source) -> list[Family]:
    """Returns the families that recognize a source: at most one model, one tokenizer.

    Files of larger models hold both.
    """
    detected = [family for family in FAMILIES.values() if family.detect(source)]
    models = [f for f in detected if not f.name.startswith("vq-")][:1]
    tokenizers = [f for f in detected if f.name.startswith("vq-")][:1]
    return models + tokenizers


def _without_prefixes(source: Source) -> Iterator[Source]:
    """Yields the source, then variants without leading components of its names."""
    yield source
    for tensors, prefix in strip_leading_components(source.tensors):
        yield replace(source, tensors=tensors, prefixes=(*source.prefixes, prefix))
