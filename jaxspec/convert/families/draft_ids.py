"""Which tokens of its target a drafter's own head scores (EAGLE-3)."""

import numpy as np

from jaxspec.convert.family import Derived
from jaxspec.convert.reading.stored import Source
from jaxspec.errors import ConfigError


def draft_ids(source: Source, drafted: int, vocab: int) -> Derived:
    """Ids int32 `[drafted]` of the head's rows, from the tables `d2t` and `t2d`.

    `d2t` holds what is added to a row's number, `t2d` whether a token is drafted. A
    head over the whole vocabulary needs neither: EAGLE's class registers both as zeros
    then and its code passes over them.

    Args:
      source: of the drafter.
      drafted: rows of its head.
      vocab: tokens of its target, `V`.

    Raises:
      ConfigError: the head scores a part of the vocabulary and there is no `d2t`; when
        the ids are made, that the tables contradict each other or the head.
    """
    whole = drafted == vocab
    if "d2t" not in source.tensors:
        if drafted < vocab:
            raise ConfigError(
                f"'{source.name}' drafts {drafted} of {vocab} tokens, but has no d2t "
                "that says which"
            )
        names = ()
    else:
        names = ("d2t", "t2d") if "t2d" in source.tensors and not whole else ("d2t",)

    def ids(*tables: np.ndarray) -> np.ndarray:
        rows = found = np.arange(drafted)
        if tables:
            offsets = tables[0]
            if offsets.shape != (drafted,) or offsets.dtype.kind not in "iu":
                raise ConfigError(
                    f"'{source.name}': d2t is no list of {drafted} numbers"
                )
            found = found + offsets
        if whole and np.any(found != rows):
            raise ConfigError(
                f"'{source.name}' drafts all {drafted} tokens, and its d2t moves some: "
                "EAGLE's code passes over d2t then, others add it. Bring the rows of "
                "lm_head.weight into the order of the tokens and leave d2t out"
            )
        if len(tables) > 1 and not np.array_equal(np.flatnonzero(tables[1]), found):
            raise ConfigError(f"'{source.name}': d2t and t2d name different tokens")
        if len(set(found.tolist())) < drafted or found.min() < 0:
            raise ConfigError(f"'{source.name}': d2t names a token twice, or none")
        if found.max() >= vocab:
            raise ConfigError(
                f"'{source.name}' drafts token {found.max()}, its target has {vocab}"
            )
        return found.astype(np.int32)

    return Derived(names, ids)
