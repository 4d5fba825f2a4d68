"""Report of a generation: a dict for files, a table for the terminal."""

import json
from typing import Any

import jax
import numpy as np

from jaxspec import __version__
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import bundled_drafter
from jaxspec.pipeline.engine import verifier_in_use
from jaxspec.pipeline.generation import GenerationResult
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.timing import ratio_fields, shown
from jaxspec.pipeline.verifiers import verifier_spec
from jaxspec.sharding.device import device_name
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree


def generation_report(
    bundle: Bundle,
    prompts: Prompts,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    fast: GenerationResult,
    plain: GenerationResult,
    loaded: LoadedDrafter | None = None,
) -> dict[str, Any]:
    """Compares speculative with plain decoding, as plain JSON types.

    `target_calls` counts, for every image, its prefill and each round until its last
    token; `seconds` leave compilation out.
    """
    same = np.array_equal(fast.tokens, plain.tokens)
    dtype = activation_dtype(bundle.prior.params)
    speculative = tree.size > 1
    verifier = verifier_in_use(config, tree)
    return {
        "images": len(prompts),
        "tokens": int(fast.tokens.size),
        "target_calls": int(fast.calls.sum()),
        "tokens_per_call": fast.tokens_per_call,
        **fast.timing.fields(),
        "compile_seconds": fast.compile_seconds,
        "baseline_target_calls": int(plain.calls.sum()),
        **{f"baseline_{k}": v for k, v in plain.timing.fields().items()},
        "baseline_compile_seconds": plain.compile_seconds,
        **ratio_fields(speedup=(plain.timing, fast.timing)),
        "identical_to_autoregressive": bool(same),
        "different_tokens": int((fast.tokens != plain.tokens).sum()),
        "near_ties_decided_again": fast.rescored,
        "checkpoint": bundle.name,
        "drafter": (loaded or bundled_drafter(bundle)).name if speculative else "none",
        "tree": {"nodes": tree.size, "depth": tree.depth},
        "verifier": verifier_spec(verifier),
        "lossless": verifier.lossless,
        "promises_identity": verifier.lossless and verifier.token_exact,
        "proposed_tokens": int(fast.proposed.sum()),
        "accepted_tokens": int(fast.hits.sum()),
        "accepted_histogram": fast.accepted.sum(0).tolist(),
        **(
            {"prompts": list(prompts.texts)}
            if prompts.condition == "caption"
            else {"classes": np.asarray(prompts.values).tolist()}
        ),
        "seed": config.seed,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "cfg_scale": config.cfg_scale,
        "cfg_interval": config.cfg_interval,
        "batch": config.batch_size,
        "dtype": str(dtype),
        "int8": bundle.int8,
        "device": device_name(),
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
    }


def generation_table(report: dict[str, Any]) -> str:
    """A short table of a report."""
    per_image = report["tokens"] // report["images"]
    kind = "lossless" if report["lossless"] else "LOSSY"
    lines = [
        f"device      {report['device']}, {report['dtype']}",
        f"checkpoint  {report['checkpoint']}, {report['images']} images of "
        f"{per_image} tokens, {report['batch']} at a time, "
        f"temperature {report['temperature']:g}, cfg {report['cfg_scale']:g}",
    ]
    speculative = report["drafter"] != "none"
    if speculative:
        tree = report["tree"]
        lines.append(
            f"drafter     {report['drafter']}, tree of {tree['nodes']} nodes and depth "
            f"{tree['depth']}, verifier {report['verifier']} ({kind})"
        )
    header = f"{'':12}{'tokens':>8}{'target calls':>14}{'tokens/call':>13}"
    lines += ["", f"{header}{'seconds':>9}{'compile':>9}"]

    def row(name, calls, seconds, compiling):
        ratio = report["tokens"] / calls
        counts = f"{report['tokens']:>8}{calls:>14}{ratio:>13.2f}"
        return f"{name:12}{counts}{seconds:>9.2f}{compiling:>9.1f}"

    plain = row(
        "plain",
        report["baseline_target_calls"],
        report["baseline_seconds"],
        report["baseline_compile_seconds"],
    )
    if not speculative:
        return "\n".join([*lines, plain])
    fast = row(
        "speculative",
        report["target_calls"],
        report["seconds"],
        report["compile_seconds"],
    )
    same = "yes, every token"
    if not report["identical_to_autoregressive"]:
        same = f"NO, {report['different_tokens']} tokens differ"
        if not report["lossless"]:
            same += " (the verifier is LOSSY)"
        elif not report["promises_identity"]:
            same += " (this verifier keeps the distribution, not the tokens)"
    return "\n".join(
        [*lines, fast, plain, "", f"speedup     {_speedup(report)}"]
        + [f"identical   {same}"]
    )


def _speedup(report: dict[str, Any]) -> str:
    """Formats the speedup; single timings are marked as no measurement."""
    words = shown(report, "speedup", "x")
    if "speedup_marked" not in report:
        return words
    return f"{words}; `jaxspec bench generate` repeats and measures"


def json_bytes(report: dict[str, Any]) -> bytes:
    """Indented JSON with a final newline."""
    return (json.dumps(report, indent=2) + "\n").encode()
