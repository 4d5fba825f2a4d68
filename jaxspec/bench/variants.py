"""Variants of the decoder that benchmarks compare."""

import re
from dataclasses import dataclass

from jaxspec.errors import ConfigError
from jaxspec.nn.attention import OVER_CACHE


@dataclass(frozen=True)
class Variant:
    """One configuration of the decoder.

    Attributes:
      attention: Attention over the cache, one of `nn.attention.OVER_CACHE`.
      int8: Whether weight matrices are quantized to int8.
      cache_stages: Number of cache sizes, see `Engine`; only for plain decoding.
    """

    attention: str = "xla"
    int8: bool = False
    cache_stages: int = 1

    @property
    def suffix(self) -> str:
        """Suffix of "jaxspec" in reports."""
        parts = [] if self.attention == "xla" else [self.attention]
        parts += [f"{self.cache_stages} cache stages"] * (self.cache_stages > 1)
        return "".join(f", {p}" for p in parts + ["int8"] * self.int8)


def find_variant(name: str) -> Variant:
    """Parses a variant: a kind of attention, "int8", "stagesN", joined by "+".

    Raises:
      ConfigError: A part is unknown, or the parts exclude each other.
    """
    attention, int8, cache_stages = "xla", False, 1
    for part in name.split("+"):
        if part == "int8":
            int8 = True
        elif part in OVER_CACHE:
            attention = part
        elif match := re.fullmatch(r"stages([1-9]\d?)", part):
            cache_stages = int(match[1])
        else:
            known = ", ".join((*OVER_CACHE, "int8", "stagesN"))
            raise ConfigError(f"unknown variant {part!r}; join some of {known} by +")
    if attention == "pallas" and cache_stages > 1:
        raise ConfigError(
            "pallas reads only the filled part of the cache: drop stagesN"
        )
    return Variant(attention, int8, cache_stages)
