"""`jaxspec info`: description of a checkpoint, and memory plans."""

import argparse

from jaxspec.cli.help import rare


def add_parser(commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "info",
        help="describe a checkpoint",
        description="Describes a bundle or a single checkpoint: its models, sizes, "
        "data, license, training and measured quality.",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="bundle or checkpoint folder (default: the embedded bundle); with --plan "
        "also a published size, gpt-b to gpt-7b, var-d16 to var-d36-s, mar-b to mar-h",
    )
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--plan",
        action="store_true",
        help="print the bytes that each device of a mesh needs for generation",
    )
    group.add_argument("--mesh", default="1x1", metavar="DATAxMODEL")
    group.add_argument("--batch", type=int, default=1, metavar="N", help="sequences")
    group.add_argument(
        "--nodes",
        type=int,
        default=58,
        metavar="N",
        help=rare("nodes of the tree, including its root (default: %(default)s)"),
    )
    group.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    group.add_argument(
        "--int8", action="store_true", help=rare("hold matrices as int8")
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints the description of a checkpoint, or a memory plan.

    Raises:
      CheckpointError: the folder is missing or holds no checkpoint.
      ConfigError: an option is impossible.
    """
    from jaxspec.checkpoint import checkpoint_of
    from jaxspec.errors import CheckpointError
    from jaxspec.pipeline.embedded import find_folder

    if arguments.plan:
        print(plan(arguments))
        return
    folder = find_folder(arguments.checkpoint)
    name, folder = folder.name, checkpoint_of(folder)
    if (folder / "config.json").is_file():
        parts = [folder]
    else:
        names = ("tokenizer", "text_encoder", "prior", "drafter")
        parts = [folder / name for name in names if (folder / name).is_dir()]
    if not parts:
        raise CheckpointError(
            f"'{folder}' holds neither config.json nor tokenizer/, prior/ or drafter/; "
            "give the folder of a bundle or of a checkpoint"
        )
    print(name)
    for part in parts:
        print()
        print(describe(part))


def plan(arguments: argparse.Namespace) -> str:
    """Memory plan of a bundle, a checkpoint or a published model size, as text.

    Raises:
      ConfigError: an option is impossible.
      CheckpointError: the model does not exist.
    """

    from jaxspec.checkpoint import checkpoint_of, read_config
    from jaxspec.config import TransformerConfig
    from jaxspec.errors import ConfigError
    from jaxspec.models.mar.presets import PRESETS as MAR_PRESETS
    from jaxspec.models.masked_lm.model import MASKED_OBJECTIVES
    from jaxspec.models.next_scale.presets import PRESETS
    from jaxspec.models.transformer.presets import NAMES, preset
    from jaxspec.pipeline.embedded import find_folder
    from jaxspec.pipeline.memory_plan import (
        drafter_cache_width,
        plan_memory,
        plan_table,
    )
    from jaxspec.sharding import AXES, read_mesh

    sizes: dict[str, int] = dict(zip(AXES, read_mesh(arguments.mesh), strict=True))
    if arguments.batch < 1 or arguments.nodes < 1:
        raise ConfigError("--batch and --nodes must be at least 1")
    name, drafter, cache_width, masked = arguments.checkpoint, None, 0, False
    if name in NAMES:
        config = preset(name)
    elif name in (others := {**PRESETS, **MAR_PRESETS}):
        config = others[name]
    else:
        folder = find_folder(name)
        name, folder = folder.name, checkpoint_of(folder)
        prior = folder / "prior"
        found = read_config(prior if prior.is_dir() else folder)
        config = found.config
        masked = found.metadata.get("objective") in MASKED_OBJECTIVES
        if (folder / "drafter").is_dir():
            checkpoint = read_config(folder / "drafter")
            drafter = checkpoint
            cache_width = drafter_cache_width(checkpoint.config)
    memory = plan_memory(
        config,
        sizes=sizes,
        batch=arguments.batch,
        nodes=arguments.nodes,
        itemsize=4 if arguments.dtype == "float32" else 2,
        int8=arguments.int8,
        cfg=config.condition != "none",
        drafter=drafter,
        drafter_cache_width=cache_width,
        masked=masked,
    )
    tree = isinstance(config, TransformerConfig) and not masked
    nodes = f"{arguments.nodes} nodes, " * tree
    title = (
        f"{name} on {arguments.mesh} devices, batch {arguments.batch}, "
        f"{nodes}{arguments.dtype}{' and int8' * arguments.int8}"
    )
    return plan_table(memory, title)


def describe(path) -> str:
    """Describes one checkpoint: size, configuration and metadata, one per line."""
    import jax

    from jaxspec.checkpoint import abstract_params, read_config
    from jaxspec.config import to_dict

    checkpoint = read_config(path)
    params = jax.tree.leaves(
        abstract_params(checkpoint.kind, checkpoint.config, checkpoint.target)
    )
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    count = sum(x.size for x in params)
    lines = [
        f"{path.name}: {checkpoint.kind}, {count / 1e6:.2f} M parameters, "
        f"{size / 1e6:.1f} MB on disk"
    ]
    config = to_dict(checkpoint.config)
    lines.append("  config    " + ", ".join(_flat(config)))
    for name, value in checkpoint.metadata.items():
        if isinstance(value, dict):
            value = ", ".join(_flat(value))
        elif isinstance(value, list):
            value = ", ".join(f"{i} {item}" for i, item in enumerate(value))
        lines.append(f"  {name:9} {value}")
    return "\n".join(lines)


def _flat(values: dict) -> list[str]:
    """Formats a nested dict as "key value" items; None is left out."""
    items = []
    for key, value in values.items():
        if isinstance(value, dict):
            items.append(f"{key} ({', '.join(_flat(value))})")
        elif isinstance(value, float):
            items.append(f"{key} {value:.4g}")
        elif value is not None:
            items.append(f"{key} {value}")
    return items
