"""Sharding rules: partition specs of parameters by path."""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxspec.errors import ConfigError
from jaxspec.sharding.mesh import check_mesh

# A regular expression searched in the path of a parameter, and its partition spec.
ShardingRule = tuple[str, PartitionSpec]
ShardingRules = Sequence[ShardingRule]
# The first rule whose pattern is found in a path applies. Projections to heads and
# hidden widths are sharded by output, projections back by input, so that a layer needs
# two all-reduces; embedding tables and output heads are sharded by vocabulary.
SHARDING_RULES: ShardingRules = (
    (r"(qkv|query|key|value)/kernel$", PartitionSpec(None, None, "model")),
    (r"qkv/bias$", PartitionSpec(None, "model")),
    (r"(qkv|query|key|value|gate_up)/kernel_scale$", PartitionSpec(None, "model")),
    (r"((change|modulation)/kernel|(^|/)head(_\d+)?)_scale$", PartitionSpec("model")),
    (r"gate_up/kernel$", PartitionSpec(None, None, "model")),
    (r"(change|modulation)/kernel$", PartitionSpec(None, "model")),
    (r"modulation/bias$", PartitionSpec("model")),
    (r"change/bias$", PartitionSpec("model")),
    (r"(^|/)(out|down)/kernel$", PartitionSpec("model", None)),
    (r"(^|/)head(_\d+)?$", PartitionSpec(None, "model")),
    (r"(^|/)head_(in|out)$", PartitionSpec(None, "model")),
    (r"(^|/)head_(in|out)_bias$", PartitionSpec("model")),
    (r"(^|/)embedding(/embedding)?$", PartitionSpec("model", None)),
    (r"(^|/)output$", PartitionSpec(None, None, "model")),
    (r"markov_in$", PartitionSpec("model", None)),
    (r"markov_out$", PartitionSpec(None, "model")),
    (r"", PartitionSpec()),
)


def spec_of(
    path: str,
    shape: tuple[int, ...],
    sizes: dict[str, int],
    rules: ShardingRules = SHARDING_RULES,
) -> PartitionSpec:
    """Partition spec of a parameter.

    An axis whose size is not a multiple of the number of devices is not sharded.

    Args:
      path: path of the parameter, with slashes.
      shape: shape of the parameter.
      sizes: number of devices along each axis of the mesh.
      rules: sharding rules; the first whose pattern is found in `path` applies.

    Raises:
      ConfigError: no rule matches, or the spec has more axes than the parameter.
    """
    matching = next((rule for rule in rules if re.search(rule[0], path)), None)
    if matching is None:
        raise ConfigError(
            f"no sharding rule matches {path}; add a last rule with pattern '.*'"
        )
    pattern, spec = matching
    if len(spec) > len(shape):
        raise ConfigError(
            f"sharding rule {pattern!r} is for {len(spec)} axes, but {path} has shape "
            f"{shape}; put a rule for it first"
        )

    def even(size: int, axis: str | tuple[str, ...] | None):
        names = (axis,) if isinstance(axis, str) else axis or ()
        parts = math.prod(sizes.get(name, 1) for name in names)
        return axis if size % parts == 0 else None

    return PartitionSpec(*(even(n, a) for n, a in zip(shape, spec, strict=False)))


def placement(
    mesh: Mesh, rules: ShardingRules = SHARDING_RULES
) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Function from path and shape of a parameter to its sharding.

    For `jaxspec.load(path, sharding=...)`.

    Args:
      mesh: mesh with the axes "data" and "model", see `make_mesh`.
      rules: sharding rules, see `spec_of`.

    Raises:
      ConfigError: the mesh lacks an axis.
    """
    mesh = check_mesh(mesh)
    sizes = dict(mesh.shape)

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, spec_of(path, shape, sizes, rules))

    return sharding


def kept_whole(
    leaves: Iterable[tuple[str, tuple[int, ...]]],
    sizes: dict[str, int],
    rules: ShardingRules = SHARDING_RULES,
) -> list[str]:
    """Paths of parameters with an axis that a rule shards but that does not divide.

    Every device holds a copy of such an axis.

    Args:
      leaves: paths and shapes of the parameters.
      sizes: number of devices along each axis of the mesh.
      rules: sharding rules, see `spec_of`.
    """
    one_device = dict.fromkeys(sizes, 1)
    return [
        path
        for path, shape in leaves
        if spec_of(path, shape, sizes, rules) != spec_of(path, shape, one_device, rules)
    ]


def spread(
    spec: PartitionSpec, shape: tuple[int, ...], sizes: dict[str, int]
) -> PartitionSpec:
    """Partition spec that also shards the largest possible axis along "data".

    Training shards parameters and optimizer states this way (FSDP, ZeRO).

    Args:
      spec: partition spec by the rules.
      shape: shape of the parameter.
      sizes: number of devices along each axis of the mesh.

    Returns:
      The spec, unchanged if it leaves no axis that "data" divides.
    """
    axes = [*spec, *(None,) * (len(shape) - len(spec))]
    devices = sizes.get("data", 1)
    candidates = [
        i
        for i, axis in enumerate(axes)
        if axis is None and shape[i] > 1 and shape[i] % devices == 0
    ]
    if candidates:
        axes[max(candidates, key=lambda i: shape[i])] = "data"
    return PartitionSpec(*axes)
