"""Download of repositories from the Hugging Face hub with `huggingface_hub`."""

import re
from pathlib import Path

from jaxspec.convert.reading.source import printable
from jaxspec.errors import DataError

# Patterns of the files to download; weights in safetensors are preferred.
TEXTS = ["*.json", "*.model", "*.txt"]
PREFERRED = ["*.safetensors"]
OTHERS = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.th"]
LOCATION = re.compile(
    r"(?P<repo>[\w][\w.\-]*/[\w][\w.\-]*)(@(?P<revision>[\w./\-]+))?(:(?P<file>[\w./\-]+))?"
)


def download(location: str) -> tuple[Path, str]:
    """Downloads `OWNER/NAME[@REVISION][:FILE]`, or finds it in the local cache.

    Without a revision the newest commit is downloaded. With HF_HUB_OFFLINE=1 only the
    cache is used.

    Returns:
      The path of the folder or the file, and the commit.

    Raises:
      DataError: this is not the name of a repository, or the download fails.
    """
    match = LOCATION.fullmatch(location)
    if match is None:
        raise DataError(
            f"there is no file or folder '{printable(location)}'; check the path"
        )
    repo, revision, file = match["repo"], match["revision"], match["file"]
    try:
        import huggingface_hub as hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            f"there is no '{location}' here. If it is a repository of the hub, install "
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
            f"there is no '{location}' here, and it cannot be fetched from the hub: "
            f"{reason[:200]}"
        ) from None
    return path, path.name
