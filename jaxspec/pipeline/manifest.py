"""Digests of the files of bundles, kept beside them in `manifest.json`."""

import json
import os
from pathlib import Path

from jaxspec.checkpoint import file_digests
from jaxspec.errors import CheckpointError
from jaxspec.io.writing import write_file

MANIFEST = "manifest.json"


def write_manifest(root: str | os.PathLike) -> None:
    """Writes the SHA-256 of every file of the bundles below `root`."""
    root = Path(root)
    digests = file_digests(root)
    digests.pop(MANIFEST, None)
    write_file(root / MANIFEST, (json.dumps(digests, indent=1) + "\n").encode())


def check_manifest(folder: Path) -> None:
    """Compares a bundle with the manifest beside it, if there is one.

    Raises:
      CheckpointError: a file is missing or differs.
    """
    manifest = folder.parent / MANIFEST
    if not manifest.is_file():
        return
    try:
        listed = json.loads(manifest.read_bytes())
    except ValueError:
        raise CheckpointError(f"'{manifest}' is damaged; fetch it again") from None
    prefix = folder.name + "/"
    wanted = {k[len(prefix) :]: v for k, v in listed.items() if k.startswith(prefix)}
    if not wanted:
        return
    found = file_digests(folder)
    for name, digest in wanted.items():
        if found.get(name) != digest:
            what = "is damaged" if name in found else "is missing"
            raise CheckpointError(
                f"'{folder / name}' {what} (its digest is in {MANIFEST}); "
                "fetch the checkpoint again"
            )
