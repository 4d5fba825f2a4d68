"""Other people's methods of doing the same, measured in the same run where installed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax

from jaxspec.config import TransformerConfig
from jaxspec.typing import Params


def torch_baselines(
    config: TransformerConfig, params: Params, batch: int, length: int
) -> dict[str, Callable[[], Any]]:
    """PyTorch's methods of decoding plainly, by name; none where it is not installed.

    On the device that JAX uses, if PyTorch can use it.

    Raises:
      ConfigError: the twin lacks something that the model has.
    """
    if find_spec("torch") is None:
        return {}
    import torch  # pyright: ignore[reportMissingImports]

    torch._dynamo.reset()  # what it compiled before counts against a limit

    from jaxspec.bench.peers.torch_decoder import TorchDecoder, torch_loop

    cpu = jax.devices()[0].platform == "cpu"
    if not cpu and not torch.cuda.is_available():
        return {}
    device = "cpu" if cpu else "cuda"

    def decoder() -> TorchDecoder:
        return TorchDecoder(config, params, batch, length, device)

    eager, fused = decoder(), decoder()
    mode = "default" if cpu else "reduce-overhead"
    step = torch.compile(fused.sample, mode=mode, fullgraph=True)
    return {
        "torch eager": lambda: torch_loop(eager, eager.sample),
        "torch.compile": lambda: torch_loop(fused, step),
    }


def torch_description() -> str:
    """Which PyTorch is measured, or why none is."""
    if find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch  # pyright: ignore[reportMissingImports]

    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        return f"torch {torch.__version__} cannot use the device"
    threads = f", {torch.get_num_threads()} threads"
    return f"torch {torch.__version__}" + threads * (jax.default_backend() == "cpu")
