"""Saving of a bundle as a folder that `load_bundle` reads."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from jaxspec.checkpoint import params_digest, save
from jaxspec.checkpoint.folders import replace_folder
from jaxspec.errors import ConfigError
from jaxspec.io.fresh import remove
from jaxspec.io.text_files import read_text
from jaxspec.pipeline.bundle import Bundle


def save_bundle(bundle: Bundle, path: str | os.PathLike) -> None:
    """Writes tokenizer, prior, drafter and text encoder, in the dtypes they have.

    Args:
      bundle: models.
      path: folder of the bundle; parts that exist there are replaced one by one, and
        parts that this bundle lacks are removed.

    Raises:
      CheckpointError: the folder cannot be written.
      ConfigError: the parameters were changed for a mesh or to int8.
    """
    if bundle.int8 or bundle.mesh is not None:
        raise ConfigError(
            f"bundle '{bundle.name}' was loaded for a mesh or in int8; load it without "
            "them to save it"
        )
    folder, drafter = Path(path), bundle.drafter
    if drafter is not None:  # a change of dtype changed its target's digest
        digest = {"target_digest": params_digest(bundle.prior.params)}
        drafter = replace(drafter, metadata={**drafter.metadata, **digest})
    parts = {
        "tokenizer": bundle.image_tokenizer,
        "prior": bundle.prior,
        "drafter": drafter,
    }
    notes = {}
    if bundle.vocabulary is not None:
        notes["prior"] = {bundle.vocabulary.name: read_text(bundle.vocabulary)}
    for name, checkpoint in parts.items():
        if checkpoint is not None:
            save(folder / name, checkpoint, notes.get(name))
        else:
            remove(folder / name)
    target, source = folder / "text_encoder", bundle.text_encoder
    if source is None:
        remove(target)
    elif source.resolve() != target.resolve():
        with replace_folder(target) as fresh:
            shutil.copytree(source, fresh, dirs_exist_ok=True)
