"""Command `jaxspec train`: tokenizer, prior, drafter and classifier, or all three."""

import argparse
from typing import Any

from jaxspec.cli.compile_cache import add_compile_cache
from jaxspec.cli.help import rare

PARTS = ("all", "tokenizer", "prior", "drafter", "classifier", "matcher")


def add_parser(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "train",
        help="train models on your images: tokenizer, prior and drafter",
        description="Trains on a folder of images: `train all` trains a tokenizer "
        "(images to tokens), a prior (the autoregressive model) and its drafter in "
        "turn, and ends with a folder that `jaxspec generate --checkpoint DIR` reads. "
        "Sizes follow from the images and the device; --config names a preset instead. "
        "A stopped run resumes when the same command is run again. Curves and samples "
        "are in DIR/PART/curves.png and DIR/PART/samples/.",
        epilog="Examples: jaxspec train all --images PHOTOS --out runs/photos; jaxspec "
        "train prior --config fruits64_cpu --manual-dir FRUITS --out runs/fruits64",
    )
    parser.add_argument(
        "part", choices=PARTS, help="what to train; each part needs those before it"
    )
    _add_data(parser)
    _add_length(parser)
    _add_start(parser)
    _add_devices(parser)
    add_compile_cache(parser)
    parser.set_defaults(run=run)


def _add_data(parser: argparse.ArgumentParser) -> None:
    """Options of images, preset and result."""
    group = parser.add_argument_group("data and result")
    group.add_argument(
        "--images",
        metavar="FOLDER",
        help="folder with a folder for each class, or with captions in metadata.jsonl "
        "or beside each image; or tfds:NAME",
    )
    group.add_argument(
        "--bad-images",
        choices=("skip", "stop"),
        default="skip",
        help="leave damaged files out, or stop; both name them (default: %(default)s)",
    )
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help="for a drafter of a model of text (--checkpoint): text file with one "
        "prompt a line, to whose answers the drafter is trained",
    )
    group.add_argument(
        "--config",
        metavar="PRESET",
        help="preset by name (fruits64_cpu, cifar10, ...), or a Python file that "
        "defines get_config()",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change one field of the sizes or settings, as in prior.layers=8 or "
        "train_prior.batch=64; repeatable",
    )
    group.add_argument(
        "--out",
        "--workdir",
        dest="workdir",
        required=True,
        metavar="DIR",
        help="folder of states, curves and samples (DIR/PART/), and of the result "
        "(DIR/checkpoint/)",
    )
    from jaxspec.cli.options import add_data

    add_data(group)


def _add_length(parser: argparse.ArgumentParser) -> None:
    """Options of the training's length."""
    group = parser.add_argument_group("length")
    group.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="time to train for; of `all`, of the three parts together (default with "
        "--images: 60 for all, of which a part takes its share)",
    )
    group.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="train a part for N steps; more than before continue a finished training",
    )


def _add_start(parser: argparse.ArgumentParser) -> None:
    """Options of models that exist."""
    group = parser.add_argument_group("models that exist")
    group.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="bundle or working folder whose tokenizer and prior are used instead of "
        "those in --out, or the name of one installed with jaxspec (fruits64)",
    )
    group.add_argument(
        "--start",
        metavar="DIR",
        help="trained part of the same configuration to start from (a prior may have "
        "had another order of tokens), a folder with one, or the name of one installed "
        "with jaxspec",
    )
    group.add_argument(
        "--encoder",
        metavar="DIR",
        help="for a prior of captions: matcher, or text encoder, from which its text "
        "encoder starts (jaxspec train matcher)",
    )


def _add_devices(parser: argparse.ArgumentParser) -> None:
    """Options of several devices."""
    group = parser.add_argument_group("several devices")
    group.add_argument(
        "--mesh",
        metavar="DATAxMODEL",
        help=rare(
            "divide batches along DATA, heads and widths along MODEL (default: one "
            "device)"
        ),
    )
    group.add_argument(
        "--fsdp",
        action="store_true",
        help=rare("with --mesh: also divide parameters and optimizer state along DATA"),
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    _check_options(arguments)

    import sys
    from pathlib import Path

    from jaxspec.data.dataset import open_dataset
    from jaxspec.train.all_parts import train_parts
    from jaxspec.train.experiment import find_experiment, with_steps
    from jaxspec.train.from_images import describe, experiment_for, with_images
    from jaxspec.train.overrides import with_overrides
    from jaxspec.train.run import train_part
    from jaxspec.train.training_run import TrainingRun

    part, images = arguments.part, None
    if arguments.images:
        images = open_dataset(
            arguments.images,
            on_bad=arguments.bad_images,
            data_dir=arguments.data_dir,
            manual_dir=arguments.manual_dir,
        )
    if arguments.config:
        experiment = with_overrides(find_experiment(arguments.config), arguments.set)
        if images is not None:
            experiment = with_images(experiment, images)
    elif arguments.prompts:
        experiment = _for_answers(arguments)
    else:
        assert images is not None  # checked by `_check_options`
        existing = _existing(arguments)
        experiment = experiment_for(images, settings=arguments.set, **existing)
    if arguments.steps is not None:
        experiment = with_steps(experiment, part, arguments.steps)
    if images is not None:
        print(describe(experiment, images), file=sys.stderr)
    training = TrainingRun(
        workdir=Path(arguments.workdir),
        images=images,
        data_dir=Path(arguments.data_dir),
        manual_dir=Path(arguments.manual_dir) if arguments.manual_dir else None,
        bundle=_bundle(arguments.checkpoint),
        start=_bundle(arguments.start),
        encoder=_bundle(arguments.encoder),
        sharding=_sharding(arguments),
        seconds=None if part == "all" else _seconds(arguments),
        command=_command(arguments),
    )
    if part == "all":
        path = train_parts(experiment, training, _minutes(arguments))
        print(f"wrote {path}; jaxspec generate --checkpoint {arguments.workdir}")
    else:
        print(f"wrote {train_part(experiment, part, training)}")


def _for_answers(arguments: argparse.Namespace) -> Any:
    """Experiment of a drafter that is trained on answers to prompts."""
    from pathlib import Path

    import jax

    from jaxspec.checkpoint import checkpoint_of, read_config
    from jaxspec.train.from_text import experiment_for_answers

    folder = _bundle(arguments.checkpoint)
    return experiment_for_answers(
        read_config(checkpoint_of(folder) / "prior").config,
        Path(arguments.prompts).resolve(),
        folder.name,
        platform=jax.devices()[0].platform,
        settings=arguments.set,
    )


def _existing(arguments: argparse.Namespace) -> dict[str, Any]:
    """Configurations of models that exist: the tokenizer, and a prior to start from."""
    from pathlib import Path

    from jaxspec.checkpoint import checkpoint_of, read_config
    from jaxspec.train.all_parts import existing_configs

    if arguments.part in ("tokenizer", "classifier", "matcher"):
        return {}
    bundle = _bundle(arguments.checkpoint) or Path(arguments.workdir) / "checkpoint"
    found = existing_configs(checkpoint_of(bundle))
    if arguments.start and arguments.part == "prior":
        start = checkpoint_of(_bundle(arguments.start), "prior")
        found["prior"] = read_config(start).config
        if (start.parent / "text_encoder").is_dir():
            found["text_encoder"] = read_config(start.parent / "text_encoder").config
    return found


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuses options that do not go together, before anything is imported."""
    from jaxspec.errors import ConfigError

    given = arguments.images, arguments.config, arguments.prompts
    if not any(given):
        raise ConfigError(
            "nothing to train on: give --images FOLDER, or --config PRESET"
        )
    if arguments.prompts and (
        arguments.part != "drafter" or not arguments.checkpoint or any(given[:2])
    ):
        raise ConfigError(
            "--prompts FILE is for a drafter of a model of text: jaxspec train drafter "
            "--checkpoint DIR --prompts FILE --out DIR"
        )
    if arguments.steps is not None and arguments.steps < 1:
        raise ConfigError(f"--steps {arguments.steps}: must be at least 1")
    if arguments.steps is not None and arguments.part == "all":
        raise ConfigError("--steps is for one part; use --minutes with `train all`")
    if arguments.steps is not None and arguments.minutes is not None:
        raise ConfigError("--steps and --minutes exclude each other")
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise ConfigError(f"--minutes {arguments.minutes}: must be positive")
    if arguments.part == "all" and (arguments.start or arguments.checkpoint):
        raise ConfigError("--start and --checkpoint are for one part")
    if arguments.encoder and arguments.part != "prior":
        raise ConfigError("--encoder is for a prior of captions: jaxspec train prior")
    if arguments.fsdp and not arguments.mesh:
        raise ConfigError("--fsdp needs a mesh; set --mesh, such as 8x1")


def _minutes(arguments: argparse.Namespace) -> float | None:
    """Minutes of all parts: an hour for images without a preset."""
    default = None if arguments.config else 60.0
    return default if arguments.minutes is None else arguments.minutes


def _seconds(arguments: argparse.Namespace) -> float | None:
    """Seconds of one part; None if its number of steps is known."""
    from jaxspec.train.from_images import SHARES

    if arguments.steps is not None:
        return None
    if arguments.minutes is not None:
        return arguments.minutes * 60
    if arguments.config:
        return None
    return 3600 * SHARES.get(arguments.part, 0.1)


def _bundle(checkpoint: str | None) -> Any:
    """Folder of the parts trained before, by path or name; None if none is given."""
    from jaxspec.pipeline.embedded import find_folder

    return find_folder(checkpoint) if checkpoint else None


def _sharding(arguments: argparse.Namespace) -> Any:
    """Devices of the training."""
    from jaxspec.sharding import make_mesh, read_mesh
    from jaxspec.train.sharding import TrainSharding

    if not arguments.mesh:
        return TrainSharding()
    return TrainSharding(make_mesh(*read_mesh(arguments.mesh)), arguments.fsdp)


def _command(arguments: argparse.Namespace) -> str:
    """Command line that the model card repeats, without folders of the data."""
    words = ["jaxspec train", arguments.part]
    words += ["--images DIR"] if arguments.images else []
    words += [f"--config {arguments.config}"] if arguments.config else []
    words += [f"--set {setting}" for setting in arguments.set]
    words += [f"--out {arguments.workdir}"]
    words += ["--manual-dir DIR"] if arguments.manual_dir else []
    for name in ("checkpoint", "start", "encoder", "minutes", "steps", "mesh"):
        value = getattr(arguments, name)
        words += [f"--{name} {value}"] if value is not None else []
    words += ["--fsdp"] if arguments.fsdp else []
    return " ".join(words)
