"""Summaries of conversions: what was written, and remarks on the choices."""

from dataclasses import dataclass
from pathlib import Path

from jaxspec.convert.plan import Conversion
from jaxspec.convert.reading.sets import display_name


@dataclass(frozen=True)
class Written:
    """Summary of a checkpoint that a conversion wrote.

    Attributes:
      folder: folder of the checkpoint.
      family: name of the family.
      kind: kind of the checkpoint.
      tensors: number of tensors that were read.
      parameters: number of elements of all parameters.
      bytes: size of all parameters in bytes.
      digest: digest of the parameters, which identifies the checkpoint.
      remarks: lines about choices, removed prefixes and unused entries.
    """

    folder: Path
    family: str
    kind: str
    tensors: int
    parameters: int
    bytes: int
    digest: str
    remarks: tuple[str, ...]


def remarks(conversion: Conversion) -> tuple[str, ...]:
    """Returns lines for the summary of a conversion."""
    source, lines = conversion.source, []
    others = [display_name(name) for name in source.sets if name != source.weights]
    if others:
        lines.append(
            f"weights: {display_name(source.weights)}; --weights can choose "
            f"{', '.join(others)}"
        )
    elif source.weights:
        lines.append(f"weights: {source.weights}")
    if source.prefixes:
        lines.append(f"removed from names: {', '.join(source.prefixes)}")
    if source.left_out:
        lines.append(f"left out: {', '.join(source.left_out)}")
    if conversion.unused_config:
        lines.append(
            f"unused entries of config.json: {', '.join(conversion.unused_config)}"
        )
    return tuple(lines)
