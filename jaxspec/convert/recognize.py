"""Which family a source is of, and which of its weights and names that family means."""

from collections.abc import Iterator
from dataclasses import replace

from jaxspec.convert.families import FAMILIES
from jaxspec.convert.family import Family
from jaxspec.convert.reading.open import with_weights
from jaxspec.convert.reading.sets import PLAIN
from jaxspec.convert.reading.stored import Source
from jaxspec.convert.reading.wrappers import peeled
from jaxspec.errors import ConfigError


def recognize(
    source: Source, name: str | None = None, weights: str | None = None
) -> list[tuple[Family, Source]]:
    """The families of a source's parts, each with the source as it is to be read.

    Args:
      source: as it was opened.
      name: of a family that the user named.
      weights: name of a set of weights that the user named; by default the one that
        the family's official loader takes.

    Raises:
      ConfigError: no family recognizes it.
      DataError: there is no such set of weights, or several that could be meant.
    """
    plain = with_weights(source, PLAIN, weights)
    if name is not None:
        families = [FAMILIES[name]]
    else:
        found = (families_of(shape) for shape in _readings(plain))
        families = next(filter(None, found), [])
    if not families:
        names = ", ".join(list(plain.tensors)[:3])
        raise ConfigError(
            f"'{source.name}' is of no known family (its tensors: {names}, ...; its "
            f"model_type: {source.config.get('model_type')}); name one with --family: "
            f"{', '.join(FAMILIES)}"
        )
    result = []
    for family in families:
        taken = with_weights(source, family.weights, weights)
        known = (shape for shape in _readings(taken) if family.detect(shape))
        result.append((family, next(known, taken)))
    return result


def families_of(source: Source) -> list[Family]:
    """The families that recognize a source: one for each kind of part in it."""
    found = [family for family in FAMILIES.values() if family.detect(source)]
    models = [f for f in found if not f.name.startswith("vq-")][:1]
    tokenizers = [f for f in found if f.name.startswith("vq-")][:1]
    return models + tokenizers


def _readings(source: Source) -> Iterator[Source]:
    """The source, then the same without what may stand before the model's own names."""
    yield source
    for tensors, prefix in peeled(source.tensors):
        yield replace(source, tensors=tensors, prefixes=(*source.prefixes, prefix))
