"""Conversion of released weights into a part of a bundle.

`prepare` plans and checks a conversion without reading weights; `convert` then writes
the checkpoint, one parameter at a time.
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from jax.sharding import Mesh

from jaxspec.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_some,
    read_config,
)
from jaxspec.config.mar import MARConfig
from jaxspec.convert.families import FAMILIES
from jaxspec.convert.family import Overrides
from jaxspec.convert.output import check_replaceable, check_source_is_kept, write_part
from jaxspec.convert.params import Progress
from jaxspec.convert.plan import DTYPES, Conversion, plan_conversion
from jaxspec.convert.reading.open import open_source
from jaxspec.convert.reading.source import Source
from jaxspec.convert.recognition import recognize
from jaxspec.convert.settings import MissingSettings, SourceSettings
from jaxspec.convert.summary import Written
from jaxspec.errors import ConfigError


class Options(TypedDict, total=False):
    """Keyword arguments of `prepare`, which `convert` passes on."""

    family: str | None
    dtype: str | None
    target: str | os.PathLike | None
    given: Overrides | None
    allow_objects: bool
    weights: str | None


def convert(
    source: str | os.PathLike,
    bundle: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[Conversion], Progress] = lambda conversion: lambda count: None,
    **options: Unpack[Options],
) -> list[Written]:
    """Converts a model into a part of a bundle.

    Args:
      source: file, folder or `OWNER/NAME[@REVISION][:FILE]` on the Hugging Face hub.
      bundle: folder of the bundle; the checkpoint is written to its subfolder
        `prior/`, `tokenizer/`, `text_encoder/` or `drafter/`.
      mesh: device mesh, possibly of simulated devices; each parameter is stored in the
        shards of this mesh, so that a device can read its shard alone.
      progress: function called before each part is written, which returns a function
        of the number of bytes processed.
      options: `family`, `dtype`, `target`, `given`, `allow_objects` and `weights`; see
        `prepare`.

    Returns:
      A summary of each checkpoint; a file of a larger model can hold two.

    Raises:
      DataError: the files cannot be read.
      ConfigError: the files do not fit the family, or a folder would be overwritten
        that is not a checkpoint.
      NonFiniteError: the weights hold NaN or infinity, or overflow the dtype.
      CheckpointError: the bundle cannot be written.
    """
    written = []
    check_source_is_kept(Path(source), Path(bundle))
    for conversion in prepare(source, bundle, **options):
        check_replaceable(conversion, Path(bundle))
        written.append(write_part(conversion, Path(bundle), progress(conversion), mesh))
    return written


def prepare(
    source: str | os.PathLike,
    bundle: str | os.PathLike,
    *,
    family: str | None = None,
    dtype: str | None = None,
    target: str | os.PathLike | None = None,
    given: Overrides | None = None,
    allow_objects: bool = False,
    weights: str | None = None,
) -> list[Conversion]:
    """Plans and checks a conversion without reading weights or writing files.

    Args:
      source: file, folder or repository, as for `convert`.
      bundle: folder of the bundle.
      family: key of `FAMILIES`; by default the family is recognized.
      dtype: key of `DTYPES`; by default the stored dtype, at most float32.
      target: checkpoint of the target model, for a drafter; by default the bundle's.
      given: settings by name, which override those of the files.
      allow_objects: whether to skip Python objects in PyTorch files instead of
        refusing the file; see `read_torch`.
      weights: name of the set of weights, if the files hold several; by default the
        one that the family's official loader takes.

    Returns:
      The planned conversion of each part of the model.

    Raises:
      DataError: the files cannot be read.
      MissingSettings: settings cannot be inferred; the message lists all of them.
      ConfigError: the files do not fit the family, or a setting has no use.
      CheckpointError: the target's checkpoint cannot be read.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"no family {family!r}; choose one of {', '.join(FAMILIES)}")
    opened = open_source(source, allow_objects=allow_objects, weights=weights)
    conversions, requested = [], set()
    missing = MissingSettings(opened.name, {})
    for part_family, part in recognize(opened, family, weights):
        target_checkpoint = None
        if part_family.drafter:
            target_checkpoint = _find_target(target, Path(bundle))
        settings = SourceSettings(given or {})
        one_d = part_family.name == "vq-titok"  # its files have the size
        if part_family.name.startswith(("vq-", "kl")) and not one_d:
            _infer_image_size(Path(bundle), part, settings)
        try:
            conversion = plan_conversion(
                part,
                part_family,
                overrides=settings,
                target=target_checkpoint,
                dtype=dtype,
            )
            conversions.append(conversion)
        except MissingSettings as error:
            missing = missing.merged_with(error)
        requested |= settings.requested
    if missing.required:
        raise missing
    if unknown := sorted(set(given or {}) - requested):
        accepted = ", ".join(sorted(requested)) or "no settings"
        raise ConfigError(
            f"--set {', '.join(unknown)}: '{opened.name}' accepts {accepted}"
        )
    return conversions


def _find_target(target: str | os.PathLike | None, bundle: Path) -> Checkpoint | None:
    """Returns a drafter's target: the user's choice, else the bundle's prior if any."""
    if target:
        return _load_target(Path(target))
    folder = bundle / "prior"
    return _load_target(folder) if folder.is_dir() else None


def _load_target(folder: Path) -> Checkpoint:
    """Loads what a drafter shares with its target: config, digest and embedding.

    A checkpoint whose metadata lack the digest is loaded whole, to compute it.
    """
    head = read_config(folder)
    if head.kind != "prior" or "digest" not in head.metadata:
        return load_checkpoint(folder, "prior")
    return replace(head, params=load_some(folder, ["embedding/embedding"]))


def _infer_image_size(bundle: Path, source: Source, settings: dict[str, Any]) -> None:
    """Sets a tokenizer's image size to that of the bundle's prior."""
    if "image_size" in settings or not (bundle / "prior").is_dir():
        return
    prior = read_config(bundle / "prior").config
    if isinstance(prior, MARConfig) or getattr(prior, "rope", None) == "grid":
        halvings = sum(
            re.search(
                r"\.(downsample|downsamplers\.0)\.conv\.weight$"
                # MaskGIT's encoder has no weights there.
                r"|\.upsample_conv\.weight$",
                name,
            )
            is not None
            for name in source.tensors
        )
        settings["image_size"] = prior.grid * 2**halvings
