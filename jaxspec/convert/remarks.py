"""What a user should learn of how a source was read, besides what was written."""

from jaxspec.convert.reading.sets import shown
from jaxspec.convert.understand import Conversion


def remarks(conversion: Conversion) -> tuple[str, ...]:
    """Lines for a summary: what was chosen, changed or passed over."""
    source, lines = conversion.source, []
    others = [shown(name) for name in source.sets if name != source.weights]
    if others:
        lines.append(
            f"weights: {shown(source.weights)}, by --weights also {', '.join(others)}"
        )
    elif source.weights:
        lines.append(f"weights: {source.weights}")
    if source.prefixes:
        lines.append(f"removed from names: {', '.join(source.prefixes)}")
    if source.left_out:
        lines.append(f"left out: {', '.join(source.left_out)}")
    if conversion.unread:
        lines.append(f"not used, of config.json: {', '.join(conversion.unread)}")
    return tuple(lines)
