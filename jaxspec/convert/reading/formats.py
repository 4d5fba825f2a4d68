"""Detection of file formats by content; suffixes are only a fallback."""

from pathlib import Path

ZIP, GGUF = b"PK\x03\x04", b"GGUF"
SUFFIXES = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".th"), "torch"),
}
# First bytes of other formats, with a message for each.
OTHERS = {
    b"\x80": "it is in PyTorch's format from before 1.6, a bare pickle. If you "
    "trust it, load it with PyTorch and save its state dict again",
    b"version ": "it is a Git LFS pointer, not the file itself; fetch the file "
    "(git lfs pull)",
    b"\x89HDF": "it is an HDF5 file; PyTorch, safetensors and GGUF weights are read",
    b"\x93NUM": "it is a NumPy array; PyTorch, safetensors and GGUF weights are read",
}


def format_of(file: Path) -> str | None:
    """Returns "safetensors", "torch", "gguf", or None if the content is neither.

    Raises:
      OSError: the file cannot be read.
    """
    with open(file, "rb") as stream:
        head = stream.read(9)
    if head[:4] == ZIP:
        return "torch"
    if head[:4] == GGUF:
        return "gguf"
    # The header begins with 8 bytes for its length, then a JSON object.
    return "safetensors" if head[8:] == b"{" else None


def other_format(head: bytes) -> str:
    """Describes a file that is not one of PyTorch's zip files, for a message.

    Args:
      head: first bytes of the file.
    """
    for magic, message in OTHERS.items():
        if head.startswith(magic):
            return message
    if not head.strip(b"\0"):
        return "it is empty; fetch it again"
    return (
        "it is neither a safetensors file nor a zip file of PyTorch, nor GGUF; check "
        "what was downloaded"
    )
