"""Files of repositories of the Hugging Face hub, with `huggingface_hub`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxspec.errors import DataError

LOCATION = re.compile(
    r"(?P<repo>[\w][\w.\-]*/[\w][\w.\-]*)(@(?P<revision>[\w./\-]+))?(:(?P<file>[\w./\-]+))?"
)


def download_file(repo: str, revision: str | None, file: str) -> Path:
    """Downloads one file of a repository, or finds it in the local cache.

    Raises:
      DataError: the package is missing, or the download fails.
    """
    return _download("hf_hub_download", repo, file, revision=revision)


def download_folder(
    repo: str, revision: str | None, patterns: Sequence[str] = ("*",)
) -> Path:
    """Downloads the files of a repository that match one of the patterns.

    Without a revision the newest commit is downloaded. With HF_HUB_OFFLINE=1 only the
    cache is used.

    Raises:
      DataError: the package is missing, or the download fails.
    """
    return _download(
        "snapshot_download", repo, revision=revision, allow_patterns=list(patterns)
    )


def _download(function: str, repo: str, *arguments: Any, **options: Any) -> Path:
    try:
        import huggingface_hub as hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            f"there is no '{repo}' here. If it is a repository of the hub, install its "
            "package: pip install 'jaxspec-decoding[hub]'"
        ) from None
    try:
        return Path(getattr(hub, function)(repo, *arguments, **options))
    except Exception as error:  # network, permission, cache: each has its own kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"there is no '{repo}' here, and it cannot be fetched from the hub: "
            f"{reason[:200]}"
        ) from None
