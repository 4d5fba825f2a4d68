"""Device meshes with the axes "data" and "model"."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxspec.errors import ConfigError

AXES = ("data", "model")


def make_mesh(
    data: int | None = None, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Device mesh with the axes "data" and "model", both of type `AxisType.Auto`.

    Args:
      data: number of devices that share the batch; by default `len(devices) // model`.
      model: number of devices that share the parameters.
      devices: devices of the mesh; by default all.

    Raises:
      ConfigError: there are fewer devices than the mesh needs.
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


def check_mesh(mesh: Mesh) -> Mesh:
    """Checks the axes of a mesh, and returns it with axes of type `AxisType.Auto`.

    Raises:
      ConfigError: the mesh lacks the axis "data" or "model".
    """
    if missing := [axis for axis in AXES if axis not in mesh.shape]:
        raise ConfigError(
            f"the mesh has axes {', '.join(mesh.axis_names)}, but no {missing[0]!r}; "
            "add an axis of size 1, or use make_mesh"
        )
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    if mesh.axis_types == kinds:
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def read_mesh(text: str) -> tuple[int, int]:
    """Parses a mesh such as "2x4" to its numbers of devices along "data" and "model".

    Raises:
      ConfigError: the text is not of this form.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise ConfigError(f"mesh {text!r} is not of the form DATAxMODEL, such as 2x4")
    return int(match[1]), int(match[2])
