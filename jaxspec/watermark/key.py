"""Secret keys with the pairs of codes that they were used with."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from jaxspec.errors import DataError
from jaxspec.io.text_files import read_text
from jaxspec.io.writing import write_file
from jaxspec.watermark.pairing import is_pairing, pair_codes

_BITS = 128


@dataclass(frozen=True)
class Key:
    """A secret key.

    Pairs are kept with it, since another version of a library may pair codes in another
    way, and a mark is found by the pairs that it was made with alone.

    Attributes:
      secret: random number of 128 bits, from which green codes follow.
      pairs: pairs of codes, int32 [K] as of `pair_codes`, by the digest of a codebook.
    """

    secret: int
    pairs: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def paired(self, codebook: np.ndarray) -> "Key":
        """The key with the pairs of a codebook, which are computed if it has none."""
        digest = codebook_digest(codebook)
        if digest in self.pairs:
            return self
        return replace(self, pairs={**self.pairs, digest: pair_codes(codebook)})


def new_key() -> Key:
    """A random key without pairs, from the system's randomness."""
    return Key(secrets.randbits(_BITS))


def codebook_digest(codebook: np.ndarray) -> str:
    """Digest of a codebook, 16 hexadecimal digits."""
    values = np.ascontiguousarray(codebook, "<f4")
    parts = repr(values.shape).encode() + values.tobytes()
    return hashlib.sha256(parts).hexdigest()[:16]


def write_key(file: Path, key: Key) -> None:
    """Writes a key as JSON."""
    pairs = {digest: mates.tolist() for digest, mates in key.pairs.items()}
    record = {"key": f"{key.secret:032x}", "pairs": pairs}
    write_file(file, (json.dumps(record) + "\n").encode())
    if os.name == "posix":
        os.chmod(file, 0o600)  # for its owner alone


def read_key(file: Path) -> Key:
    """Reads a key.

    Raises:
      DataError: the file cannot be read, or holds no key.
    """
    text = read_text(file)
    try:
        record = json.loads(text)
        secret = int(record["key"], 16)
        pairs = {
            str(digest): np.array(mates, np.int32)
            for digest, mates in record["pairs"].items()
        }
        good = 0 <= secret < 1 << _BITS and all(map(is_pairing, pairs.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        good = False
    if not good:
        raise DataError(
            f"'{file}' holds no key; `jaxspec generate --watermark FILE` writes a new "
            "one where no file is"
        )
    return Key(secret, pairs)


def green_codes(key: Key, mates: np.ndarray) -> np.ndarray:
    """Mask of the green codes, bool [K]: one of each pair, as independent fair coins.

    Args:
      key: secret key.
      mates: int32 [K], see `pair_codes`. A code without another is not green.
    """
    codes = np.arange(len(mates))
    first = np.minimum(codes, mates)  # one coin for each pair: that of its first code
    return (mates >= 0) & ((codes == first) == (_coins(key.secret, len(mates))[first]))


def _coins(secret: int, count: int) -> np.ndarray:
    """Fair coins, bool [count], that a key determines on every machine.

    SHAKE-256 of the key: neither the key nor other coins follow from some coins.
    """
    stream = hashlib.shake_256(secret.to_bytes(_BITS // 8, "big"))
    data = np.frombuffer(stream.digest(-(-count // 8)), np.uint8)
    return np.unpackbits(data)[:count].astype(bool)
