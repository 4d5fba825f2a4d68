"""Record of measured costs beside the compiled programs."""

import hashlib
import json
import platform
from pathlib import Path

import jax

from jaxspec.errors import DataError
from jaxspec.io.text_files import read_text
from jaxspec.io.writing import write_file
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.engine import bundle_for
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.tree_choice.costs import RoundCosts
from jaxspec.sharding.device import device_name

# Prompts whose lengths differ by less share a record.
PROMPT_STEP = 64


def costs_key(
    bundle: Bundle,
    prompts: Prompts,
    config: GenerationConfig,
    loaded: LoadedDrafter,
    batch: int,
) -> str:
    """Digest of everything that costs depend on: device, sizes, dtypes and batch."""
    target = bundle_for(bundle, loaded).prior
    parts = (
        jax.__version__,
        device_name(),
        platform.node(),
        _processor(),
        repr(target.config),
        repr(loaded.drafter),
        str(activation_dtype(target.params)),
        bundle.int8,
        config.attention,
        config.cfg_scale != 1.0,
        batch,
        -(-prompts.length // PROMPT_STEP),
        config.max_new_tokens,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def load_costs(key: str) -> RoundCosts | None:
    """Costs that an earlier process recorded; None if there are none to read."""
    file = _file(key)
    if file is None:
        return None
    try:
        fields = json.loads(file.read_bytes())
        rounds = {int(nodes): float(s) for nodes, s in fields["rounds"].items()}
        step = float(fields["step"])
        return RoundCosts(step, rounds) if rounds and step > 0 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save_costs(key: str, costs: RoundCosts) -> None:
    """Records costs, if compiled programs are kept and the timings were steady."""
    file = _file(key)
    if file is None or not costs.steady:
        return
    fields = {"step": costs.step, "rounds": dict(costs.rounds)}
    try:
        write_file(file, json.dumps(fields).encode())
    except OSError:  # a cache that cannot be written: measured again next time
        return


def _file(key: str) -> Path | None:
    """File of a record in JAX's folder of compiled programs, if it has one."""
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    return Path(folder) / f"round_costs-{key}.json" if folder else None


def _processor() -> str:
    """Model of the processor, where Linux names it."""
    try:
        lines = read_text(Path("/proc/cpuinfo")).splitlines()
    except DataError:
        return ""
    return next((line for line in lines if line.startswith("model name")), "")
