"""Checkpoints: models and training states on disk."""

from jaxspec.checkpoint.folders import (
    checkpoint_of,
    file_digests,
    recover,
)
from jaxspec.checkpoint.models import (
    KINDS,
    Checkpoint,
    abstract_params,
    digest_of,
    load_checkpoint,
    load_some,
    model_of,
    parameter_count,
    params_digest,
    read_config,
    save,
    save_leaves,
)
from jaxspec.checkpoint.pytrees import (
    Placement,
    load_state,
    named_leaves,
    save_state,
)

__all__ = [
    "Checkpoint",
    "KINDS",
    "Placement",
    "abstract_params",
    "checkpoint_of",
    "digest_of",
    "file_digests",
    "load_checkpoint",
    "load_some",
    "load_state",
    "model_of",
    "named_leaves",
    "parameter_count",
    "params_digest",
    "read_config",
    "recover",
    "save",
    "save_leaves",
    "save_state",
]
