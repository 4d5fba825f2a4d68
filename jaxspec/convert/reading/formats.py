"""What a file is, by its content; the end of its name is a hint and no more."""

from pathlib import Path

ZIP = b"PK\x03\x04"
SUFFIXES = {
    ".safetensors": "safetensors",
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".th"), "torch"),
}
# First bytes of files that are often taken for weights, and what to do about each.
OTHERS = {
    b"\x80": "it is in PyTorch's format from before 1.6, a bare pickle. Where you "
    "trust it, load it with PyTorch and save its state dict again",
    b"version ": "it is a pointer of Git LFS, not the file it stands for; fetch that "
    "(git lfs pull)",
    b"GGUF": "it is a GGUF file; convert the PyTorch or safetensors weights that it "
    "was made from",
    b"\x89HDF": "it is an HDF5 file; only PyTorch and safetensors weights are read",
    b"\x93NUM": "it is a NumPy array; only PyTorch and safetensors weights are read",
}


def format_of(file: Path) -> str | None:
    """ "safetensors", "torch", or None if the content is neither.

    Raises:
      OSError: the file cannot be read.
    """
    with open(file, "rb") as stream:
        head = stream.read(9)
    if head[:4] == ZIP:
        return "torch"
    # Eight bytes of length, then a JSON object.
    return "safetensors" if head[8:] == b"{" else None


def other_format(head: bytes) -> str:
    """What a file is that is no zip file of PyTorch's, for a message.

    Args:
      head: its first bytes.
    """
    for magic, meaning in OTHERS.items():
        if head.startswith(magic):
            return meaning
    if not head.strip(b"\0"):
        return "it is empty; fetch it again"
    return (
        "it is neither a safetensors file nor a zip file of PyTorch; check what was "
        "downloaded"
    )
