"""Draft vocabulary of EAGLE-3: token ids of the drafter's output head."""

import numpy as np

from jaxspec.convert.family import ComputedParam
from jaxspec.convert.reading.source import Source
from jaxspec.errors import ConfigError


def draft_ids(source: Source, draft_vocab: int, vocab: int) -> ComputedParam:
    """Computes the token id int32 `[draft_vocab]` of each output of the head.

    `d2t` holds the difference between the token id and the output's index, `t2d`
    whether a token is in the draft vocabulary. A head over the whole vocabulary needs
    neither: EAGLE's class registers both as zeros then, and its code ignores them.

    Args:
      source: source of the drafter.
      draft_vocab: number of outputs of its head.
      vocab: vocabulary size of its target, `V`.

    Raises:
      ConfigError: the head covers a part of the vocabulary and there is no `d2t`. When
        the ids are computed: the tables contradict each other or the head.
    """
    covers_all = draft_vocab == vocab
    if "d2t" not in source.tensors:
        if draft_vocab < vocab:
            raise ConfigError(
                f"'{source.name}' drafts {draft_vocab} of {vocab} tokens, but has no "
                "d2t, the table of their ids"
            )
        names = ()
    else:
        has_mask = "t2d" in source.tensors and not covers_all
        names = ("d2t", "t2d") if has_mask else ("d2t",)

    def compute(*tables: np.ndarray) -> np.ndarray:
        outputs = ids = np.arange(draft_vocab)
        if tables:
            offsets = tables[0]
            if offsets.shape != (draft_vocab,) or offsets.dtype.kind not in "iu":
                raise ConfigError(
                    f"'{source.name}': d2t is no list of {draft_vocab} numbers"
                )
            ids = outputs + offsets
        if covers_all and np.any(ids != outputs):
            raise ConfigError(
                f"'{source.name}' drafts all {draft_vocab} tokens, and its d2t moves "
                "some: EAGLE's code ignores d2t then, other code adds it. Permute "
                "lm_head.weight into the order of the tokens and leave d2t out"
            )
        if len(tables) > 1 and not np.array_equal(np.flatnonzero(tables[1]), ids):
            raise ConfigError(f"'{source.name}': d2t and t2d name different tokens")
        if len(set(ids.tolist())) < draft_vocab or ids.min() < 0:
            raise ConfigError(
                f"'{source.name}': d2t names a token twice, or a negative one"
            )
        if ids.max() >= vocab:
            raise ConfigError(
                f"'{source.name}' drafts token {ids.max()}, its target has {vocab}"
            )
        return ids.astype(np.int32)

    return ComputedParam(names, compute)


def draft_tables(ids: np.ndarray, vocab: int) -> dict[str, np.ndarray]:
    """Inverts `draft_ids`: returns the tables `d2t` and `t2d` by name.

    Args:
      ids: token id int64 `[draft_vocab]` of each output of the head.
      vocab: vocabulary size of the target, `V`.
    """
    is_drafted = np.zeros(vocab, bool)
    is_drafted[ids] = True
    return {"d2t": ids - np.arange(len(ids)), "t2d": is_drafted}
