"""Models, drafter, tree and settings that a command's options ask for."""

import argparse
import sys
from dataclasses import replace
from typing import Any, NamedTuple

from jaxspec.cli.options import print_replicated, sampling_settings


class Models(NamedTuple):
    """Models of a command.

    Attributes:
      bundle: a `Bundle`.
      loaded: a `LoadedDrafter`; None for plain decoding.
      tree: shape of the drafts; the root alone for plain decoding; None if it is chosen
        automatically, by `with_tree`.
      choice: a `TreeChoice`, if the tree was chosen automatically.
    """

    bundle: Any
    loaded: Any
    tree: Any
    choice: Any = None


def load_models(
    arguments: argparse.Namespace, mesh: Any = None, *, quiet: bool = False
) -> Models:
    """Loads what `--checkpoint`, `--dtype`, `--order`, `--drafter` and so on name.

    Args:
      arguments: parsed options.
      mesh: mesh of the parameters; None for one device.
      quiet: whether to print no notes about the mesh and the drafter.

    Raises:
      CheckpointError: the checkpoint cannot be used.
      ConfigError: there is no such drafter or tree.
    """
    from jaxspec.pipeline.bundle import load_bundle, token_by_token
    from jaxspec.pipeline.drafters import drafter_of
    from jaxspec.pipeline.embedded import CAPTIONS
    from jaxspec.pipeline.orders import with_order
    from jaxspec.pipeline.tree_choice import AUTO
    from jaxspec.speculative.trees.parsing import parse_tree
    from jaxspec.speculative.trees.tree import Tree

    automatic = arguments.tree in (None, AUTO)
    if not automatic:
        parse_tree(arguments.tree)  # raises before anything is loaded
    dtype = arguments.dtype if arguments.dtype != "float32" else None
    name = arguments.checkpoint
    if name is None and arguments.prompt and not arguments.classes:
        name = CAPTIONS
    bundle = load_bundle(name, dtype=dtype, mesh=mesh, int8=arguments.int8)
    if arguments.order is not None:
        bundle = with_order(bundle, arguments.order)
    if mesh is not None and not quiet:
        print_replicated(bundle)
    loaded = drafter_of(arguments.drafter, bundle)
    if loaded is None:
        if arguments.drafter != "none" and arguments.tree not in (None, AUTO, "root"):
            token_by_token(bundle)  # raises: nothing fills a tree
        return Models(bundle, None, Tree.root())
    if arguments.drafter == "own" and bundle.drafter is None and not quiet:
        print(
            f"bundle '{bundle.name}' has no drafter, so {loaded.name} drafts, which "
            "needs no training; --drafter none decodes plainly",
            file=sys.stderr,
        )
    return Models(bundle, loaded, None if automatic else loaded.tree(arguments.tree))


def with_tree(
    models: Models,
    prompts: Any,
    config: Any,
    *,
    count: int | None = None,
    drafting: bool = False,
) -> Models:
    """The models with the tree that is fastest, if none was named.

    Args:
      models: models, whose tree may be None.
      prompts: `Prompts` of the sequences, or some of them.
      config: a `GenerationConfig`.
      count: number of sequences; None for that of the prompts.
      drafting: whether drafts are wanted where plain decoding is faster.
    """
    from jaxspec.pipeline.tree_choice import choose_tree

    if models.tree is not None:
        return models
    bundle, loaded = models.bundle, models.loaded
    choice = choose_tree(bundle, prompts, config, loaded, count=count)
    tree = choice.tree
    if drafting and tree.size == 1:
        tree = loaded.tree()
        more = f"{choice.reason}; {tree.size} nodes are drafted to compare"
        choice = replace(choice, reason=more)
    return models._replace(tree=tree, choice=choice)


def given_settings(arguments: argparse.Namespace, groups: int = 1) -> dict[str, Any]:
    """Settings of a command, for `resolve_config`; None where an option is not given.

    Args:
      arguments: parsed options.
      groups: groups of devices, each with a default batch of its own.

    Raises:
      ConfigError: a setting is out of range, or there is no such verifier.
    """
    from jaxspec.pipeline.config import GenerationConfig
    from jaxspec.pipeline.settings import DEFAULT_BATCH
    from jaxspec.pipeline.verifiers import parse_verifier

    batch = arguments.batch
    settings = {
        **sampling_settings(arguments),
        "attention": arguments.attention,
        "batch_size": groups * DEFAULT_BATCH if batch is None else batch,
        "cache_stages": arguments.cache_stages,
        "max_new_tokens": getattr(arguments, "max_tokens", None),
        "verifier": parse_verifier(arguments.verifier),
    }
    GenerationConfig(**{k: v for k, v in settings.items() if v is not None})  # checks
    return settings


def print_start(models: Models, config: Any, images: int, prefix: int = 0) -> None:
    """Prints device, models and settings of a generation on stderr."""
    from jaxspec.pipeline.description import describe_run, format_run

    bundle, loaded, tree, choice = models
    text = format_run(describe_run(bundle, images, config, tree, loaded, prefix))
    if choice is not None:
        text += f"\n{'tree':12}{choice}"
    print(text, file=sys.stderr, flush=True)
