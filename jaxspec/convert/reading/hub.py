"""Download of repositories from the Hugging Face hub for conversion."""

from pathlib import Path

from jaxspec.convert.reading.source import printable
from jaxspec.errors import DataError
from jaxspec.io.hub import LOCATION, download_file, download_folder

# Patterns of the files to download; weights in safetensors are preferred.
TEXTS = ["*.json", "*.model", "*.txt"]
PREFERRED = ["*.safetensors"]
OTHERS = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.th"]


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
    if file is not None:
        path = download_file(repo, revision, file)
        return path, path.parents[file.count("/")].name
    path = download_folder(repo, revision, TEXTS + PREFERRED)
    if not any(path.glob("*.safetensors")):
        path = download_folder(repo, revision, TEXTS + OTHERS)
    return path, path.name
