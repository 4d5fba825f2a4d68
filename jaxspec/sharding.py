"""Where parameters lie on a mesh of devices: rules by path."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxspec.errors import ConfigError

AXES = ("data", "model")
Rules = Sequence[tuple[str, PartitionSpec]]
# The first pattern that is found in a path decides. Columns of what widens, rows of
# what narrows, so that a layer needs two sums over devices; tables by vocabulary.
RULES: Rules = (
    (r"(qkv|query|key|value)/kernel$", PartitionSpec(None, None, "model")),
    (r"qkv/bias$", PartitionSpec(None, "model")),
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


def make_mesh(
    data: int | None = None, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with the automatic axes "data" and "model".

    Args:
      data: devices along which rows are divided; by default all that are left.
      model: devices along which parameters are divided.
      devices: by default all.

    Raises:
      ConfigError: there are not so many devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if model < 1 or (data is not None and data < 1):
        raise ConfigError(f"a mesh of {data} x {model} devices: use at least 1 of each")
    data = max(len(devices) // model, 1) if data is None else data
    if data * model > len(devices):
        raise ConfigError(
            f"a mesh of {data} x {model} needs {data * model} devices, there are "
            f"{len(devices)}"
        )
    return jax.make_mesh(
        (data, model),
        AXES,
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: data * model],
    )


def read_mesh(text: str) -> tuple[int, int]:
    """ "2x4" as numbers of devices along "data" and "model".

    Raises:
      ConfigError: it is not of this form.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise ConfigError(f"mesh {text!r} is not of the form DATAxMODEL, such as 2x4")
    return int(match[1]), int(match[2])


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

    def even(size: int, axis: str | None) -> str | None:
        return axis if axis and size % sizes.get(axis, 1) == 0 else None

    return PartitionSpec(*(even(n, a) for n, a in zip(shape, spec, strict=False)))


def placement(
    mesh: Mesh, rules: Rules = RULES
) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """The sharding of each parameter, for `jaxspec.load(path, sharding=...)`."""
    sizes = dict(mesh.shape)

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, spec_of(path, shape, sizes, rules))

    return place
