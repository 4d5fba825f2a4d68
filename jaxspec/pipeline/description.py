"""Description of a generation before it runs: models, settings and device."""

from collections.abc import Mapping
from typing import Any

from jaxspec.config.orders import order_of
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.engine import verifier_in_use
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.verifiers import verifier_spec
from jaxspec.sharding.device import device_name
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree


def describe_run(
    bundle: Bundle,
    images: int,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter | None = None,
    prefix: int = 0,
) -> dict[str, Any]:
    """Entries of a report that are known before the run, as plain JSON types.

    Args:
      bundle: models.
      images: number of images.
      config: generation settings.
      tree: shape of the drafts; the root alone for plain decoding.
      loaded: drafter; None for the bundle's own.
      prefix: number of tokens of the longest prompt or prefix.
    """
    verifier = verifier_in_use(config, tree)
    if tree.size > 1:
        loaded = loaded or load_drafter("own", bundle)
    tokenizer = bundle.image_tokenizer
    length = bundle.prior.config.sequence_length - prefix
    return {
        "checkpoint": bundle.name,
        "makes": "texts" if bundle.image_tokenizer is None else "images",
        "images": images,
        "tokens_per_image": min(length, config.max_new_tokens or length),
        "prefix_tokens": prefix,
        "parameters": {
            "prior": bundle.prior.size,
            "tokenizer": tokenizer.size if tokenizer else 0,
            "drafter": loaded.size if loaded and tree.size > 1 else 0,
        },
        "drafter": loaded.name if loaded and tree.size > 1 else "none",
        "tree": {"nodes": tree.size, "depth": tree.depth},
        "verifier": verifier_spec(verifier),
        "lossless": verifier.lossless,
        "promises_identity": verifier.lossless and verifier.token_exact,
        "seed": config.seed,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "cfg_scale": config.cfg_scale,
        "cfg_interval": config.cfg_interval,
        "batch": config.batch_size,
        "dtype": str(activation_dtype(bundle.prior.params)),
        "int8": bundle.int8,
        "order": order_of(bundle.prior.config),
        "device": device_name(),
    }


def format_run(fields: Mapping[str, Any]) -> str:
    """Formats what `describe_run` returned, in three or four lines."""
    int8 = " and int8" if fields["int8"] else ""
    sizes = ", ".join(
        f"{part} {_millions(count)}"
        for part, count in fields["parameters"].items()
        if count
    )
    settings = f"temperature {fields['temperature']:g}, cfg {fields['cfg_scale']:g}"
    if fields["top_k"]:
        settings += f", top-k {fields['top_k']}"
    if fields["top_p"] < 1:
        settings += f", top-p {fields['top_p']:g}"
    if fields["order"] != "raster":
        settings += f", {fields['order']} order"
    given = f" after {fields['prefix_tokens']}" if fields["prefix_tokens"] else ""
    lines = [
        f"device      {fields['device']}, {fields['dtype']}{int8}",
        f"checkpoint  {fields['checkpoint']}, parameters: {sizes}",
        f"{fields['makes']:12}{fields['images']} of {fields['tokens_per_image']} tokens"
        f"{given}, {fields['batch']} at a time, {settings}",
    ]
    if fields["drafter"] != "none":
        tree, kind = fields["tree"], "lossless" if fields["lossless"] else "LOSSY"
        lines.append(
            f"drafter     {fields['drafter']}, tree of {tree['nodes']} nodes and depth "
            f"{tree['depth']}, verifier {fields['verifier']} ({kind})"
        )
    return "\n".join(lines)


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
