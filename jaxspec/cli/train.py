"""`jaxspec train`: tokenizer, prior, drafter, classifier."""

import argparse


def add_parser(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "train",
        help="train a tokenizer, a prior, a drafter or a classifier",
        description="Trains one part of a preset. Tokenizer, prior and drafter are "
        "trained in this order, in one working folder, because each reads the one "
        "before; the classifier, which measures images, reads none. A run that was "
        "stopped goes on where it was when the same command is given again; more "
        "--steps lengthen a finished one, and the preset's learning rate, warm-up, "
        "decays and intervals may change in between.",
        epilog="Example: jaxspec train tokenizer --config configs/fruits64_cpu.py "
        "--manual-dir DIR_OF_FRUITS360 --workdir runs/fruits64",
    )
    parser.add_argument("part", choices=("tokenizer", "prior", "drafter", "classifier"))
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="preset: a Python file with get_config(), as in configs/",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="holds DIR/PART/ (state, metrics.jsonl) and the loadable result in "
        "DIR/checkpoint/PART/",
    )
    from jaxspec.cli.options import add_data

    add_data(parser)
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="train for N steps instead of the preset's",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="bundle whose tokenizer and prior are used instead of those that "
        "--workdir holds; 'embedded' is the one that comes with jaxspec",
    )
    parser.add_argument(
        "--start",
        metavar="DIR",
        help="a trained prior or drafter of the same shape to go on from",
    )
    parser.add_argument(
        "--mesh",
        metavar="DATAxMODEL",
        help="train on several devices: rows divided along DATA, heads and widths "
        "along MODEL (default: one device)",
    )
    parser.add_argument(
        "--fsdp",
        action="store_true",
        help="with --mesh: divide parameters and the optimizer's state along DATA, too",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from pathlib import Path

    from jaxspec.errors import ConfigError
    from jaxspec.train.experiment import load_experiment, with_steps

    experiment = load_experiment(arguments.config)
    if arguments.steps is not None:
        if arguments.steps < 1:
            raise ConfigError(f"--steps {arguments.steps}: train at least one step")
        experiment = with_steps(experiment, arguments.part, arguments.steps)

    if arguments.fsdp and not arguments.mesh:
        raise ConfigError("--fsdp divides along a mesh: give --mesh, such as 8x1")

    from jaxspec.bundle import DEFAULT, embedded_folder
    from jaxspec.sharding import make_mesh, read_mesh
    from jaxspec.train.layout import Layout
    from jaxspec.train.run import train_part

    bundle = arguments.checkpoint and Path(arguments.checkpoint)
    if arguments.checkpoint == "embedded":
        bundle = embedded_folder() / DEFAULT

    command = f"jaxspec train {arguments.part} --config {arguments.config}"
    command += f" --workdir {arguments.workdir}"
    if arguments.checkpoint:
        command += f" --checkpoint {arguments.checkpoint}"
    if arguments.start:
        if arguments.part not in ("prior", "drafter"):
            raise ConfigError("--start is for priors and drafters")
        command += f" --start {arguments.start}"
    if arguments.manual_dir:
        command += " --manual-dir DIR"
    if arguments.steps is not None:
        command += f" --steps {arguments.steps}"
    layout = Layout()
    if arguments.mesh:
        layout = Layout(make_mesh(*read_mesh(arguments.mesh)), arguments.fsdp)
        command += f" --mesh {arguments.mesh}" + " --fsdp" * arguments.fsdp
    path = train_part(
        experiment,
        arguments.part,
        Path(arguments.workdir),
        Path(arguments.data_dir),
        Path(arguments.manual_dir) if arguments.manual_dir else None,
        command,
        bundle,
        Path(arguments.start) if arguments.start else None,
        layout,
    )
    print(f"wrote {path}")
