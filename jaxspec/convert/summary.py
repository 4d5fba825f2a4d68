"""Remarks on a conversion: choices, removed prefixes and unused entries."""

from jaxspec.convert.plan import Conversion
from jaxspec.convert.reading.sets import display_name


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
