"""A checkpoint as a model and its parameters."""

import os
from pathlib import Path
from typing import Any

from jaxspec.checkpoint import Placement, load_checkpoint
from jaxspec.models.masked_lm.model import MASKED_OBJECTIVES, MaskedDiffusion
from jaxspec.pipeline.bundle import check_dtype
from jaxspec.typing import Params


def load(
    path: str | os.PathLike, sharding: Placement = None, dtype: Any = None
) -> tuple[Any, Params]:
    """Reads a model.

    Args:
      path: part of a bundle (`.../prior`, `.../tokenizer`, `.../text_encoder`,
        `.../drafter`), or a bundle, whose prior is read.
      sharding: sharding of all parameters, or a function from path and shape to one; by
        default everything is put onto the first device.
      dtype: dtype of floating-point parameters; by default that on disk.

    Returns:
      A `Transformer`, `MaskedDiffusion`, `Tokenizer`, `TextEncoder`, `Classifier` or a
      drafter, all of them static and hashable; and its parameters. `Engine.variables`
      joins those of a drafter with those of its target.

    Raises:
      CheckpointError: the checkpoint is missing or damaged.
      ConfigError: `dtype` is no floating-point dtype.
      NonFiniteError: a parameter holds NaN or infinity.
    """
    check_dtype(dtype)
    folder = Path(path)
    if not (folder / "config.json").is_file() and (folder / "prior").is_dir():
        folder = folder / "prior"
    found = load_checkpoint(folder, sharding=sharding, dtype=dtype)
    model = found.model
    if found.metadata.get("objective") in MASKED_OBJECTIVES:
        model = MaskedDiffusion(model, bool(found.metadata.get("shifted")))
    return model, found.params
