"""Ways of running our own decoder that are compared."""

import re
from dataclasses import dataclass

from jaxspec.errors import ConfigError
from jaxspec.nn.attention import OVER_CACHE


@dataclass(frozen=True)
class Variant:
    """One way.

    Attributes:
      attention: see `nn.attention.OVER_CACHE`.
      int8: matrices in eight bits.
      cache_stages: see `Engine`; of decoding alone.
    """

    attention: str = "xla"
    int8: bool = False
    cache_stages: int = 1

    @property
    def words(self) -> str:
        """Behind "jaxspec" in a report."""
        parts = [] if self.attention == "xla" else [self.attention]
        parts += [f"{self.cache_stages} phases"] * (self.cache_stages > 1)
        return "".join(f", {p}" for p in parts + ["int8"] * self.int8)


def find_variant(name: str) -> Variant:
    """By name: a kind of attention, "int8", "phasesN", joined by "+".

    Raises:
      ConfigError: no such variant.
    """
    attention, int8, cache_stages = "xla", False, 1
    for part in name.split("+"):
        if part == "int8":
            int8 = True
        elif part in OVER_CACHE:
            attention = part
        elif found := re.fullmatch(r"phases([1-9]\d?)", part):
            cache_stages = int(found[1])
        else:
            known = ", ".join((*OVER_CACHE, "int8", "phasesN"))
            raise ConfigError(f"unknown variant {part!r}; join some of {known} by +")
    if attention == "pallas" and cache_stages > 1:
        raise ConfigError("pallas reads only what is filled: it needs no phases")
    return Variant(attention, int8, cache_stages)
