"""Where parameters lie on a mesh of devices: rules by path."""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxspec.errors import ConfigError
from jaxspec.sharding.mesh import check_mesh

Rules = Sequence[tuple[str, PartitionSpec]]
# The first pattern that is found in a path decides. Columns of what widens, rows of
# what narrows, so that a layer needs two sums over devices; tables by vocabulary.
RULES: Rules = (
    (r"(qkv|query|key|value)/kernel$", PartitionSpec(None, None, "model")),
    (r"qkv/bias$", PartitionSpec(None, "model")),
    (r"(qkv|query|key|value|gate_up)/kernel_scale$", PartitionSpec(None, "model")),
    (r"(change/kernel|(^|/)head)_scale$", PartitionSpec("model")),
    (r"gate_up/kernel$", PartitionSpec(None, None, "model")),
    (r"change/kernel$", PartitionSpec(None, "model")),
    (r"change/bias$", PartitionSpec("model")),
    (r"(out|down)/kernel$", PartitionSpec("model", None)),
    (r"(^|/)head$", PartitionSpec(None, "model")),
    (r"(^|/)head_(in|out)$", PartitionSpec(None, "model")),
    (r"(^|/)head_(in|out)_bias$", PartitionSpec("model")),
    (r"(^|/)embedding(/embedding)?$", PartitionSpec("model", None)),
    (r"(^|/)output$", PartitionSpec(None, None, "model")),
    (r"markov_in$", PartitionSpec("model", None)),
    (r"markov_out$", PartitionSpec(None, "model")),
    (r"", PartitionSpec()),
)


def spec_of(
    path: str, shape: tuple[int, ...], sizes: dict[str, int], rules: Rules = RULES
) -> PartitionSpec:
    """How a parameter is divided; an axis that does not divide evenly stays whole.

    Args:
      path: of the parameter, with slashes.
      shape: of the parameter.
      sizes: devices along each axis of the mesh.
      rules: patterns, searched in the path in order, and what they ask for.

    Raises:
      ConfigError: no rule is about it, or one asks for more axes than it has.
    """
    found = next((rule for rule in rules if re.search(rule[0], path)), None)
    if found is None:
        raise ConfigError(f"no sharding rule is about {path}; end with one for '.*'")
    pattern, spec = found
    if len(spec) > len(shape):
        raise ConfigError(
            f"rule {pattern!r} divides {len(spec)} axes, {path} has {shape}"
        )

    def even(size: int, axis: str | tuple[str, ...] | None):
        joined = (axis,) if isinstance(axis, str) else axis or ()
        parts = math.prod(sizes.get(name, 1) for name in joined)
        return axis if size % parts == 0 else None

    return PartitionSpec(*(even(n, a) for n, a in zip(shape, spec, strict=False)))


def placement(
    mesh: Mesh, rules: Rules = RULES
) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """The sharding of each parameter, for `jaxspec.load(path, sharding=...)`."""
    mesh = check_mesh(mesh)
    sizes = dict(mesh.shape)

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, spec_of(path, shape, sizes, rules))

    return place


def kept_whole(
    leaves: Iterable[tuple[str, tuple[int, ...]]],
    sizes: dict[str, int],
    rules: Rules = RULES,
) -> list[str]:
    """Parameters that a rule would divide, but whose axis does not divide evenly.

    Args:
      leaves: paths and shapes.
      sizes: devices along each axis of the mesh.
      rules: see `spec_of`.
    """
    anything = dict.fromkeys(sizes, 1)
    return [
        path
        for path, shape in leaves
        if spec_of(path, shape, sizes, rules) != spec_of(path, shape, anything, rules)
    ]


def spread(
    spec: PartitionSpec, shape: tuple[int, ...], sizes: dict[str, int]
) -> PartitionSpec:
    """`spec`, with the largest axis that is whole and divides put along "data".

    How training divides what every device would otherwise hold a copy of (FSDP, ZeRO).
    """
    axes = [*spec, *(None,) * (len(shape) - len(spec))]
    free = [i for i, axis in enumerate(axes) if axis is None]
    free = [i for i in free if shape[i] > 1 and shape[i] % sizes.get("data", 1) == 0]
    if free:
        axes[max(free, key=lambda i: shape[i])] = "data"
    return PartitionSpec(*axes)
