"""Repositories of the Hugging Face hub, through its own package."""

import re
from pathlib import Path

from jaxspec.convert.reading.stored import printable
from jaxspec.errors import DataError

# What a model can be made of; nothing else is fetched.
TEXTS = ["*.json", "*.model", "*.txt"]
PREFERRED = ["*.safetensors"]
OTHERS = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.th"]
PLACE = re.compile(
    r"(?P<repo>[\w][\w.\-]*/[\w][\w.\-]*)(@(?P<revision>[\w./\-]+))?(:(?P<file>[\w./\-]+))?"
)


def download(place: str) -> tuple[Path, str]:
    """Fetches `OWNER/NAME[@REVISION][:FILE]`, or finds it in the local cache.

    Without a revision the newest commit is taken; which one it was is returned. With
    HF_HUB_OFFLINE=1 only the cache is looked into.

    Returns:
      The folder, or the file, and the commit.

    Raises:
      DataError: it is not the name of a repository, or cannot be had.
    """
    match = PLACE.fullmatch(place)
    if match is None:
        raise DataError(
            f"there is no file or folder '{printable(place)}'; check the path"
        )
    repo, revision, file = match["repo"], match["revision"], match["file"]
    try:
        import huggingface_hub as hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            f"there is no '{place}' here. If it is a repository of the hub, install "
            "its package: pip install 'jaxspec-decoding[hub]'"
        ) from None
    try:
        if file is not None:
            path = Path(hub.hf_hub_download(repo, file, revision=revision))
            depth = file.count("/") + 1
            return path, path.parents[depth - 1].name

        def fetch(patterns):
            return Path(
                hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)
            )

        path = fetch(TEXTS + PREFERRED)
        if not any(path.glob("*.safetensors")):
            path = fetch(TEXTS + OTHERS)
    except Exception as error:  # network, permission, cache: each has its own kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"there is no '{place}' here, and it cannot be fetched from the hub: "
            f"{reason[:200]}"
        ) from None
    return path, path.name
