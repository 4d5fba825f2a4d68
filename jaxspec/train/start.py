"""Checks of a checkpoint from which a training starts."""

from typing import Any

from jaxspec.checkpoint import Checkpoint, params_digest
from jaxspec.errors import ConfigError


def check_kind(start: Checkpoint, kind: str) -> None:
    """Checks the kind of a checkpoint to start from.

    Raises:
      ConfigError: it is of another kind.
    """
    if start.kind != kind:
        raise ConfigError(
            f"--start holds a checkpoint of kind '{start.kind}'; choose one of kind "
            f"'{kind}'"
        )


def check_start(start: Checkpoint, kind: str, config: Any) -> None:
    """Checks that a training can start from a checkpoint.

    Raises:
      ConfigError: it is of another kind or configuration.
    """
    check_kind(start, kind)
    if start.config != config:
        raise ConfigError(
            f"the {kind} to start from has the configuration {start.config}; the one "
            f"to train has {config}"
        )


def start_digests(start: Checkpoint | None) -> tuple[str, ...]:
    """Digest of the initial parameters, for the identity of a training."""
    return () if start is None else (params_digest(start.params),)
