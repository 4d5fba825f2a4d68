"""Medusa heads.

Tensor names: FasterDecoding/Medusa `model/medusa_model.py`.
"""

from jaxspec.checkpoint import Checkpoint
from jaxspec.convert.family import Family, Overrides, Plan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.source import Source
from jaxspec.convert.settings import count_tensors
from jaxspec.drafters.medusa.network import MedusaConfig


def _plan(source: Source, overrides: Overrides, target: Checkpoint | None) -> Plan:
    assert target is not None
    root = "medusa_head." if "medusa_head.0.0.linear.weight" in source.tensors else ""
    heads = count_tensors(source, f"{root}{{i}}.0.linear.weight")
    blocks = count_tensors(source, f"{root}0.{{i}}.linear.weight")
    config = MedusaConfig(
        heads, target.config.width, blocks, own_output=True, norm_eps=1e-6
    )
    rules = []
    for i in range(heads):
        for j in range(blocks):
            name, path = f"{root}{i}.{j}.linear", f"head_{i}_block_{j}/change"
            rules.append(KeyRule(f"{name}.weight", f"{path}/kernel", "linear"))
            rules.append(KeyRule(f"{name}.bias", f"{path}/bias"))
        name = f"{root}{i}.{blocks}.weight"
        rules.append(KeyRule(name, "output", "row_linear", i, heads, axis=0))
    return Plan("medusa", config, tuple(rules), target=target.config)


FAMILIES = (
    Family(
        "medusa",
        lambda s: any(
            f"{root}0.0.linear.weight" in s.tensors for root in ("", "medusa_head.")
        ),
        _plan,
        drafter=True,
    ),
)
