"""Sharding over a mesh: sequences along "data", parameters along "model"."""

from jaxspec.sharding.mesh import AXES, check_mesh, make_mesh, read_mesh
from jaxspec.sharding.over_batch import Replicated, over_batch, pad_batch
from jaxspec.sharding.rules import (
    SHARDING_RULES,
    ShardingRules,
    kept_whole,
    placement,
    spec_of,
)

__all__ = [
    "AXES",
    "Replicated",
    "SHARDING_RULES",
    "ShardingRules",
    "check_mesh",
    "kept_whole",
    "make_mesh",
    "over_batch",
    "pad_batch",
    "placement",
    "read_mesh",
    "spec_of",
]
