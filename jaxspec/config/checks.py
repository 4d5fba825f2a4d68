"""What every configuration checks."""

from typing import Any

from jaxspec.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def positive(config: Any, *names: str) -> None:
    """Raises `ConfigError` if one of the named fields is below 1."""
    for name in names:
        value = getattr(config, name)
        require(value >= 1, f"{name}={value} must be at least 1")


def even_heads(heads: int, width: int) -> None:
    """Raises `ConfigError` unless heads divide a width into multiples of 4."""
    require(
        width % heads == 0 and (width // heads) % 4 == 0,
        f"heads={heads} must divide width={width} into head sizes that are multiples "
        "of 4",
    )


def grouped_heads(heads: int, kv_heads: int) -> None:
    """Raises `ConfigError` unless query heads share key/value heads evenly."""
    require(heads % kv_heads == 0, f"kv_heads={kv_heads} must divide heads={heads}")
