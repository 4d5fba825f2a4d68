"""tfds builders for data sets that tfds does not provide."""

from jaxspec.data.builders.cifar10 import Cifar10Packed
from jaxspec.data.builders.emoji import Emoji64
from jaxspec.data.builders.fruits import Fruits360

__all__ = ["Cifar10Packed", "Emoji64", "Fruits360"]
