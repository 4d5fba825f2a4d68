"""From files of another framework to a checkpoint: checked first, then in pieces."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxspec.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_some,
    read_config,
    save_leaves,
)
from jaxspec.convert.assemble import Progress, arrays, blocks_of
from jaxspec.convert.families import FAMILIES
from jaxspec.convert.family import Given, MissingSettings, Settings
from jaxspec.convert.reading.open import open_source
from jaxspec.convert.reading.stored import Source
from jaxspec.convert.recognize import recognize
from jaxspec.convert.remarks import remarks
from jaxspec.convert.understand import DTYPES, Conversion, understand
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.sharding import placement
from jaxspec.spec.neighbors import neighbor_table
from jaxspec.text_files import read_text

# Where a part of a bundle lies.
FOLDERS = {"prior": "prior", "tokenizer": "tokenizer", "text_encoder": "text_encoder"}
# LANTERN's k; one more neighbor is kept.
NEIGHBORS = 1000


@dataclass(frozen=True)
class Written:
    """What a conversion wrote.

    Attributes:
      folder: of the checkpoint.
      family: by name.
      kind: of the checkpoint.
      tensors: that were read.
      parameters: numbers in them.
      bytes: written.
      digest: of the values, as the library tells checkpoints apart.
      remarks: what the files held besides, and how they were read; see `remarks`.
    """

    folder: Path
    family: str
    kind: str
    tensors: int
    parameters: int
    bytes: int
    digest: str
    remarks: tuple[str, ...]


def convert(
    place: str | os.PathLike,
    bundle: str | os.PathLike,
    *,
    family: str | None = None,
    dtype: str | None = None,
    target: str | os.PathLike | None = None,
    given: Given | None = None,
    allow_objects: bool = False,
    weights: str | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[Conversion], Progress] = lambda conversion: lambda count: None,
) -> list[Written]:
    """Converts a model into a part of a bundle.

    Args:
      place: see `open_source`.
      bundle: folder; the part goes into `prior/`, `tokenizer/`, `text_encoder/` or
        `drafter/` in it.
      family: a key of `FAMILIES`; by default it is recognized.
      dtype: a key of `DTYPES`; by default as stored, at most float32.
      target: the converted model that a drafter drafts for; by default the bundle's.
      given: settings that the files do not tell, by name.
      allow_objects: see `read_torch`.
      weights: name of the set of weights to take, where the files hold several; by
        default the one that the family's official loader takes.
      mesh: see `make_mesh`; parameters are written from its devices, each part for
        itself, and can be read so. Simulated ones do as well.
      progress: called before each part is written; gives a function of bytes done.

    Raises:
      DataError: the files cannot be used.
      ConfigError: they do not fit the family.
      NonFiniteError: they hold NaN.
      CheckpointError: the bundle cannot be written.
    """
    written = []
    _keep_others_files(Path(place), Path(bundle))
    for conversion in prepare(
        place,
        bundle,
        family=family,
        dtype=dtype,
        target=target,
        given=given,
        allow_objects=allow_objects,
        weights=weights,
    ):
        _keep_what_is_no_checkpoint(conversion, Path(bundle))
        written.append(_write(conversion, Path(bundle), progress(conversion), mesh))
    return written


def prepare(
    place: str | os.PathLike,
    bundle: str | os.PathLike,
    *,
    family: str | None = None,
    dtype: str | None = None,
    target: str | os.PathLike | None = None,
    given: Given | None = None,
    allow_objects: bool = False,
    weights: str | None = None,
) -> list[Conversion]:
    """What `convert` would do, without doing it; takes and raises the same."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"no family {family!r}; choose one of {', '.join(FAMILIES)}")
    found = open_source(place, allow_objects=allow_objects, weights=weights)
    conversions, asked = [], set()
    missing = MissingSettings(found.name, {})
    for one, source in recognize(found, family, weights):
        drafted = None
        if one.drafter:
            folder = Path(target) if target else Path(bundle) / "prior"
            if target or folder.is_dir():
                drafted = _target(folder)
        settings = Settings(given or {})
        if one.name.startswith("vq-"):
            _same_images(Path(bundle), source, settings)
        try:
            conversions.append(
                understand(source, one, given=settings, target=drafted, dtype=dtype)
            )
        except MissingSettings as error:
            missing = missing.with_those_of(error)
        asked |= settings.asked
    if missing.wanted:
        raise missing
    if unknown := sorted(set(given or {}) - asked):
        offer = ", ".join(sorted(asked)) or "nothing"
        raise ConfigError(
            f"--set {', '.join(unknown)}: '{found.name}' asks for {offer}"
        )
    return conversions


def _keep_others_files(place: Path, bundle: Path) -> None:
    """Refuses to replace the folder of the source, or one above it.

    Raises:
      ConfigError: says so.
    """
    if not place.exists():
        return
    source = place.resolve() if place.is_dir() else place.resolve().parent
    for part in (*FOLDERS.values(), "drafter"):
        target = (bundle / part).resolve()
        if target == source or target in source.parents:
            raise ConfigError(
                f"'{bundle / part}' would replace the source '{place}'; name another "
                "folder for the bundle"
            )


def _keep_what_is_no_checkpoint(conversion: Conversion, bundle: Path) -> None:
    """Refuses to replace a folder that is none of ours.

    Raises:
      ConfigError: says so.
    """
    folder = bundle / FOLDERS.get(conversion.plan.kind, "drafter")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        read_config(folder)
    except CheckpointError:
        raise ConfigError(
            f"'{folder}' is there and is no checkpoint of jaxspec; it is left as it "
            "is. Move it, or name another folder for the bundle"
        ) from None


def _target(folder: Path) -> Checkpoint:
    """What a drafter shares with its target; all of it, where its digest is unknown."""
    head = read_config(folder)
    if head.kind != "prior" or "digest" not in head.metadata:
        return load_checkpoint(folder, "prior")
    return replace(head, params=load_some(folder, ["embedding/embedding"]))


def _same_images(bundle: Path, source: Source, settings: dict[str, Any]) -> None:
    """A tokenizer makes images of the size that the bundle's prior draws."""
    if "image_size" in settings or not (bundle / "prior").is_dir():
        return
    prior = read_config(bundle / "prior").config
    if getattr(prior, "rope", None) == "grid":
        halvings = sum(n.endswith(".downsample.conv.weight") for n in source.tensors)
        settings["image_size"] = prior.grid * 2**halvings


def _write(
    conversion: Conversion,
    bundle: Path,
    progress: Progress,
    mesh: Mesh | None,
) -> Written:
    plan, source = conversion.plan, conversion.source
    metadata: dict[str, Any] = {
        **plan.metadata,
        "source": source.name,
        "family": conversion.family.name,
    }
    if source.revision:
        metadata["revision"] = source.revision
    if source.weights:
        metadata["weights"] = source.weights
    if conversion.target_digest:
        metadata["target_digest"] = conversion.target_digest
    digest, codebook = hashlib.sha256(), []
    place = placement(mesh) if mesh else None

    def leaves() -> Iterator[tuple[str, np.ndarray | jax.Array]]:
        for path, x in arrays(conversion, progress):
            digest.update(path.encode())
            for block in blocks_of(x):
                digest.update(block.reshape(-1).view(np.uint8).data)
            if path == "codebook":
                codebook.append(x.astype(np.float32))
            yield path, jax.device_put(x, place(path, x.shape)) if place else x

    def finish() -> Checkpoint:
        metadata["digest"] = digest.hexdigest()[:16]
        table = None
        if codebook and len(codebook[0]) > 3:
            table = neighbor_table(codebook[0], min(NEIGHBORS, len(codebook[0]) - 2))
        return Checkpoint(plan.kind, plan.config, {}, metadata, table)

    folder = bundle / FOLDERS.get(plan.kind, "drafter")
    save_leaves(folder, leaves(), finish, _texts(source, plan.kind))
    return Written(
        folder,
        conversion.family.name,
        plan.kind,
        sum(len(line.theirs) for line in conversion.lines),
        conversion.parameters,
        conversion.bytes,
        metadata["digest"],
        remarks(conversion),
    )


def _texts(source: Source, kind: str) -> dict[str, str]:
    """Files that a part cannot do without: how a text encoder's captions are cut."""
    file = (source.folder or Path()) / "tokenizer.json"
    if kind != "text_encoder" or not file.is_file():
        return {}
    return {"tokenizer.json": read_text(file)}
