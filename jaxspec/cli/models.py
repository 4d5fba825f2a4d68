"""Models, drafter, tree and settings that a command's options ask for."""

import argparse
from typing import Any, NamedTuple

from jaxspec.cli.options import print_replicated, sampling_settings


class Models(NamedTuple):
    """Models of a command.

    Attributes:
      bundle: a `Bundle`.
      loaded: a `LoadedDrafter`; None for plain decoding.
      tree: shape of the drafts; the root alone for plain decoding.
    """

    bundle: Any
    loaded: Any
    tree: Any


def load_models(
    arguments: argparse.Namespace, mesh: Any = None, *, quiet: bool = False
) -> Models:
    """Loads what `--checkpoint`, `--dtype`, `--int8`, `--drafter` and `--tree` name.

    Args:
      arguments: parsed options.
      mesh: mesh of the parameters; None for one device.
      quiet: whether to print nothing about parameters that the mesh does not divide.

    Raises:
      CheckpointError: the checkpoint cannot be used.
      ConfigError: there is no such drafter or tree.
    """
    from jaxspec.pipeline.bundle import load_bundle
    from jaxspec.pipeline.drafters import load_drafter
    from jaxspec.speculative.trees.parsing import parse_tree
    from jaxspec.speculative.trees.tree import Tree

    if arguments.tree:
        parse_tree(arguments.tree)  # raises before anything is loaded
    dtype = arguments.dtype if arguments.dtype != "float32" else None
    bundle = load_bundle(
        arguments.checkpoint, dtype=dtype, mesh=mesh, int8=arguments.int8
    )
    if mesh is not None and not quiet:
        print_replicated(bundle)
    if arguments.drafter == "none":
        return Models(bundle, None, Tree.root())
    loaded = load_drafter(arguments.drafter, bundle)
    return Models(bundle, loaded, loaded.tree(arguments.tree))


def generation_config(arguments: argparse.Namespace, groups: int = 1) -> Any:
    """`GenerationConfig` of a command.

    Args:
      arguments: parsed options.
      groups: groups of devices, each with a default batch of its own.

    Raises:
      ConfigError: a setting is out of range, or there is no such verifier.
    """
    from jaxspec.pipeline.config import GenerationConfig
    from jaxspec.pipeline.verifiers import parse_verifier
    from jaxspec.speculative.trees.parsing import default_batch

    batch, stages = arguments.batch, arguments.cache_stages
    return GenerationConfig(
        **sampling_settings(arguments),
        attention=arguments.attention,
        batch_size=groups * default_batch() if batch is None else batch,
        cache_stages=1 if stages is None else stages,
        verifier=parse_verifier(arguments.verifier),
    )
