"""`jaxspec info`: what a checkpoint holds."""

import argparse


def add_parser(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "info",
        help="describe a checkpoint",
        description="Describes a bundle or a single checkpoint: its models, sizes, "
        "data, licence, training and measured quality.",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="bundle or checkpoint folder (default: the embedded bundle)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from pathlib import Path

    from jaxspec.bundle import DEFAULT, embedded_folder
    from jaxspec.errors import CheckpointError

    if arguments.checkpoint is None:
        folder = embedded_folder() / DEFAULT
    else:
        folder = Path(arguments.checkpoint)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder at '{folder}'; check the path")
    if (folder / "config.json").is_file():
        parts = [folder]
    else:
        names = ("tokenizer", "text_encoder", "prior", "drafter")
        parts = [folder / name for name in names if (folder / name).is_dir()]
    if not parts:
        raise CheckpointError(
            f"'{folder}' holds neither config.json nor tokenizer/, prior/, drafter/"
        )
    print(folder.name)
    for part in parts:
        print()
        print(describe(part))


def describe(path) -> str:
    """One checkpoint in a few lines."""
    import jax

    from jaxspec.checkpoint import abstract_params, read_config
    from jaxspec.config import to_dict

    checkpoint = read_config(path)
    params = jax.tree.leaves(abstract_params(checkpoint.kind, checkpoint.config))
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    count = sum(x.size for x in params)
    lines = [
        f"{path.name}: {checkpoint.kind}, {count / 1e6:.2f} M parameters, "
        f"{size / 1e6:.1f} MB on disk"
    ]
    config = to_dict(checkpoint.config)
    lines.append("  config    " + ", ".join(_flat(config)))
    for name, value in checkpoint.about.items():
        if isinstance(value, dict):
            value = ", ".join(_flat(value))
        elif isinstance(value, list):
            value = ", ".join(f"{i} {item}" for i, item in enumerate(value))
        lines.append(f"  {name:9} {value}")
    return "\n".join(lines)


def _flat(values: dict) -> list[str]:
    out = []
    for key, value in values.items():
        if isinstance(value, dict):
            out.append(f"{key} ({', '.join(_flat(value))})")
        elif isinstance(value, float):
            out.append(f"{key} {value:.4g}")
        elif value is not None:
            out.append(f"{key} {value}")
    return out
