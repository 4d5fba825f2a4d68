"""Ways of running our own decoder that are compared."""

from dataclasses import dataclass

from jaxspec.errors import ConfigError
from jaxspec.nn.attention import ATTENTION


@dataclass(frozen=True)
class Variant:
    """One way.

    Attributes:
      attention: see `nn.attention.ATTENTION`.
      int8: matrices in eight bits.
    """

    attention: str = "xla"
    int8: bool = False

    @property
    def words(self) -> str:
        """Behind "jaxspec" in a report."""
        parts = [] if self.attention == "xla" else [self.attention]
        return "".join(f", {p}" for p in parts + ["int8"] * self.int8)


def find_variant(name: str) -> Variant:
    """By name: kinds of attention and "int8", joined by "+", such as "pallas+int8".

    Raises:
      ConfigError: no such variant.
    """
    attention, int8 = "xla", False
    for part in name.split("+"):
        if part == "int8":
            int8 = True
        elif part in ATTENTION:
            attention = part
        else:
            known = ", ".join((*ATTENTION, "int8"))
            raise ConfigError(f"unknown variant {part!r}; join some of {known} by +")
    return Variant(attention, int8)
