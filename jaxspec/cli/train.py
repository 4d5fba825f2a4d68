"""Command `jaxspec train`: tokenizer, prior, drafter and classifier."""

import argparse


def add_parser(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "train",
        help="train a tokenizer, a prior, a drafter or a classifier",
        description="Trains one part of a preset. Train tokenizer, prior and drafter "
        "in this order and in one working folder, because each needs the part before; "
        "the classifier, which measures images, needs none. A stopped run resumes when "
        "the same command is run again. A finished one continues with more --steps. "
        "The preset's learning rate, warm-up, decays and intervals may change in "
        "between.",
        epilog="Example: jaxspec train tokenizer --config configs/fruits64_cpu.py "
        "--manual-dir DIR_OF_FRUITS360 --workdir runs/fruits64",
    )
    parser.add_argument("part", choices=("tokenizer", "prior", "drafter", "classifier"))
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="preset: a Python file that defines get_config(), as in configs/",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="folder of the state and metrics.jsonl, in DIR/PART/, and of the loadable "
        "result, in DIR/checkpoint/PART/",
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
        help="bundle whose tokenizer and prior are used instead of those in "
        "--workdir; 'embedded' is the one installed with jaxspec",
    )
    parser.add_argument(
        "--start",
        metavar="DIR",
        help="trained prior or drafter of the same configuration to start from",
    )
    parser.add_argument(
        "--mesh",
        metavar="DATAxMODEL",
        help="train on several devices: batches are divided along DATA, heads and "
        "widths along MODEL (default: one device)",
    )
    parser.add_argument(
        "--fsdp",
        action="store_true",
        help="with --mesh: also divide parameters and optimizer state along DATA",
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
            raise ConfigError(f"--steps {arguments.steps}: must be at least 1")
        experiment = with_steps(experiment, arguments.part, arguments.steps)

    if arguments.fsdp and not arguments.mesh:
        raise ConfigError("--fsdp needs a mesh; set --mesh, such as 8x1")

    from jaxspec.pipeline.bundle import DEFAULT, embedded_folder
    from jaxspec.sharding import make_mesh, read_mesh
    from jaxspec.train.run import train_part
    from jaxspec.train.sharding import TrainSharding

    bundle = arguments.checkpoint and Path(arguments.checkpoint)
    if arguments.checkpoint == "embedded":
        bundle = embedded_folder() / DEFAULT

    command = f"jaxspec train {arguments.part} --config {arguments.config}"
    command += f" --workdir {arguments.workdir}"
    if arguments.checkpoint:
        command += f" --checkpoint {arguments.checkpoint}"
    if arguments.start:
        if arguments.part not in ("prior", "drafter"):
            raise ConfigError("--start is only for priors and drafters")
        command += f" --start {arguments.start}"
    if arguments.manual_dir:
        command += " --manual-dir DIR"
    if arguments.steps is not None:
        command += f" --steps {arguments.steps}"
    sharding = TrainSharding()
    if arguments.mesh:
        sharding = TrainSharding(make_mesh(*read_mesh(arguments.mesh)), arguments.fsdp)
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
        sharding,
    )
    print(f"wrote {path}")
