"""Baselines in PyTorch, measured in the same run where it is installed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax

from jaxspec.config import TransformerConfig
from jaxspec.typing import Params


def torch_device() -> str | None:
    """PyTorch's name of the device that JAX uses; None if PyTorch cannot use it."""
    import torch  # pyright: ignore[reportMissingImports]

    if jax.devices()[0].platform == "cpu":
        return "cpu"
    return "cuda" if torch.cuda.is_available() else None


def torch_baselines(
    config: TransformerConfig,
    params: Params,
    batch: int,
    length: int,
    cfg_scale: float = 2.0,
) -> dict[str, Callable[[], Any]]:
    """PyTorch programs for plain decoding, by name.

    They run on the device that JAX uses.

    Args:
      config: Config of the target.
      params: Parameters of the target.
      batch: Number of images.
      length: Tokens of each image.
      cfg_scale: CFG scale.

    Returns:
      Calls by name; empty if PyTorch is not installed or cannot use the device.

    Raises:
      ConfigError: `TorchDecoder` does not support the model.
    """
    if find_spec("torch") is None:
        return {}
    import torch  # pyright: ignore[reportMissingImports]

    torch._dynamo.reset()  # earlier compilations count against a limit

    from jaxspec.bench.baselines.torch_decoder import TorchDecoder, torch_loop

    device = torch_device()
    if device is None:
        return {}

    def decoder() -> TorchDecoder:
        return TorchDecoder(config, params, batch, length, device, cfg_scale)

    eager, fused = decoder(), decoder()
    mode = "default" if device == "cpu" else "reduce-overhead"
    step = torch.compile(fused.sample, mode=mode, fullgraph=True)
    return {
        "torch eager": lambda: torch_loop(eager, eager.sample),
        "torch.compile": lambda: torch_loop(fused, step),
    }


def torch_description() -> str:
    """PyTorch version and threads, or the reason why it is not measured."""
    if find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch  # pyright: ignore[reportMissingImports]

    if torch_device() is None:
        return f"torch {torch.__version__} cannot use the device"
    threads = f", {torch.get_num_threads()} threads"
    return f"torch {torch.__version__}" + threads * (jax.default_backend() == "cpu")
