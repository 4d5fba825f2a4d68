"""Sharding over a mesh: sequences along "data", parameters along "model"."""

from jaxspec.sharding.mesh import AXES, check_mesh, make_mesh, read_mesh
from jaxspec.sharding.rows import fill_rows, over_rows
from jaxspec.sharding.rules import (
    SHARDING_RULES,
    ShardingRules,
    kept_whole,
    placement,
    spec_of,
)

__all__ = [
    "AXES",
    "SHARDING_RULES",
    "ShardingRules",
    "check_mesh",
    "fill_rows",
    "kept_whole",
    "make_mesh",
    "over_rows",
    "placement",
    "read_mesh",
    "spec_of",
]
