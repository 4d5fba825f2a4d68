"""Devices as ahead-of-time compilation targets, without the hardware."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from jaxspec.bench.roofline.ceilings import Ceilings
from jaxspec.errors import ConfigError


@dataclass(frozen=True)
class DeviceSpec:
    """Published figures of a device.

    Attributes:
      name: Name of the device.
      ceilings: Memory bandwidth and bfloat16 peak rate.
      make: Function that returns the device for compilation.
      hertz: Clock rate in cycles per second, for compilers that estimate cycles.
    """

    name: str
    ceilings: Ceilings
    make: Callable[[], Any]
    hertz: float | None = None


# Keeps libtpu, which JAX loads whenever it is installed, from querying the metadata
# server of a TPU machine.
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


def _tpu(topology: str) -> Callable[[], Any]:
    def make():
        try:
            return topologies.get_topology_desc(topology, "tpu").devices[0]
        except RuntimeError as error:
            raise ConfigError(
                f"compiling for TPUs needs libtpu: pip install libtpu ({error})"
            ) from error

    return make


def _h100() -> Any:
    try:
        return topologies.get_topology_desc(
            "h100", "cuda", target_config=_H100, topology="1x1x1"
        ).devices[0]
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            "compiling for NVIDIA GPUs needs JAX's plugin: pip install 'jax[cuda13]' "
            f"({error})"
        ) from error


# NVIDIA's figures for an H100 SXM, as XLA's `GpuTargetConfigProto`.
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 }
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  device_address_bits: 64
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.12.0"
}
"""

DEVICES = {
    "h100": DeviceSpec("H100 SXM", Ceilings(3.35e12, 989e12, "bfloat16"), _h100),
    "v5e": DeviceSpec(
        "TPU v5e",
        Ceilings(819e9, 197e12, "bfloat16"),
        _tpu("v5e:2x2"),
        # The clock at which 4 matrix units of 128 x 128 reach the published rate.
        hertz=1.5e9,
    ),
}


def find_device(name: str) -> tuple[DeviceSpec, Any]:
    """Looks up a device by name; returns its figures and the compilation target.

    Raises:
      ConfigError: The device is unknown, or its compiler is not installed.
    """
    if name not in DEVICES:
        known = ", ".join(DEVICES)
        raise ConfigError(f"unknown device {name!r}; choose one of {known}")
    for key, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    return DEVICES[name], DEVICES[name].make()


def compiler_for(device: Any, on_compiled: Callable[[Any], None]) -> Callable[..., Any]:
    """Makes a `Compiler` for a device; its programs cannot run here.

    Args:
      device: Compilation target.
      on_compiled: Callback that receives each compiled program.
    """
    sharding = jax.sharding.SingleDeviceSharding(device)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=_abstract(device))

    def compile_program(run, *arguments, donate=()):
        from jaxspec.pipeline.tree_choice.compiling import lower

        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            arguments,
        )
        with jax.sharding.use_abstract_mesh(mesh):  # Pallas reads the device from it
            program = lower(run, *shapes, donate=donate).compile()
        on_compiled(program)
        return program

    return compile_program


def _abstract(device: Any) -> Any:
    cores = getattr(device, "num_cores", None)
    return jax.sharding.AbstractDevice(device.device_kind, cores, device.platform)
