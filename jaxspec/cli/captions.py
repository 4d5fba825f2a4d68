"""`jaxspec eval captions`: does a model draw what is asked, and does it memorize?"""

import argparse

from jaxspec.cli.compile_cache import add_compile_cache
from jaxspec.cli.options import add_checkpoint, add_data, check_scales

SUFFIXES = (".json", ".md", ".png")


def add_captions(parts) -> None:
    """Registers the command."""
    from jaxspec.cli.reports import add_numbers, add_out

    parser = parts.add_parser(
        "captions",
        help="how well images fit their captions, and which were memorized",
        description="Generates an image for captions of each split. A matcher of "
        "images and captions ranks the asked caption among 100: reports how often it "
        "is first, for generated and for real images; and the distance to the nearest "
        "training image, with a sheet of the nearest pairs.",
        epilog="Example: jaxspec eval captions --data emoji64 --manual-dir DIR "
        "--splits originals test --matcher runs/emoji/checkpoint/matcher --out report",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--data", required=True, metavar="NAME", help="tfds name of the data set"
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["train", "test"],
        metavar="SPLIT",
        help="splits whose captions are asked for (default: train test)",
    )
    parser.add_argument(
        "--train-split",
        default="train",
        metavar="SPLIT",
        help="split that the model was trained on (default: %(default)s)",
    )
    parser.add_argument(
        "--matcher",
        metavar="DIR",
        help="matcher from `jaxspec train matcher` (default: the bundle's)",
    )
    parser.add_argument(
        "--cfg-scale",
        type=float,
        metavar="S",
        help="CFG scale (default: the checkpoint's, else 2)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed (default: %(default)s)"
    )
    add_data(parser)
    add_numbers(
        parser,
        num=(200, "images of each split"),
        batch=(16, "images generated together"),
    )
    add_compile_cache(parser)
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      CheckpointError: a model is missing or damaged.
      ConfigError: an option is impossible, or the model reads no captions.
      DataError: a split has no captions.
    """
    from pathlib import Path

    from jaxspec.cli.reports import check_numbers, check_out, command_line, with_plot

    check_numbers(arguments, "batch", num=2)
    check_out(arguments.out, *SUFFIXES)
    if arguments.cfg_scale is not None:
        check_scales(arguments.cfg_scale)

    from jaxspec.checkpoint import checkpoint_of, load_checkpoint
    from jaxspec.data.tfds_images import tfds_images
    from jaxspec.errors import ConfigError
    from jaxspec.evaluate.captions import (
        captions_markdown,
        measure_captions,
        nearest_sheet,
    )
    from jaxspec.io.images import png_bytes
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.embedded import find_folder
    from jaxspec.pipeline.pipeline import load_pipeline
    from jaxspec.pipeline.report import json_bytes

    pipe = load_pipeline(arguments.checkpoint, drafter=None)
    bundle = pipe.bundle
    if bundle.prior.config.condition != "caption":
        raise ConfigError(f"bundle '{bundle.name}' reads no captions")
    if arguments.matcher:
        matcher = Path(arguments.matcher)
    else:
        matcher = checkpoint_of(find_folder(arguments.checkpoint)) / "matcher"
    checkpoint = load_checkpoint(matcher, "matcher")
    sources = {
        split: tfds_images(
            arguments.data,
            split,
            bundle.tokenizer.config.image_size,
            arguments.data_dir,
            arguments.manual_dir,
        )
        for split in dict.fromkeys([*arguments.splits, arguments.train_split])
    }
    found = measure_captions(
        pipe,
        checkpoint,
        matcher,
        {split: sources[split] for split in arguments.splits},
        sources[arguments.train_split],
        count=arguments.num,
        seed=arguments.seed,
        cfg_scale=arguments.cfg_scale,
        batch=arguments.batch,
    )
    options = {
        "checkpoint": [arguments.checkpoint] if arguments.checkpoint else [],
        "data": [arguments.data],
        "splits": arguments.splits,
        "train-split": [arguments.train_split],
        "matcher": [arguments.matcher] if arguments.matcher else [],
        "cfg-scale": [f"{found.result['cfg_scale']:g}"],
        "seed": [arguments.seed],
        "num": [arguments.num],
        "batch": [arguments.batch],
        "out": [arguments.out],
    }
    result = {"command": command_line("eval captions", options), **found.result}
    write_file(arguments.out + ".json", json_bytes(result))
    text = captions_markdown(result)
    write_file(arguments.out + ".md", with_plot(text, arguments.out).encode())
    write_file(arguments.out + ".png", png_bytes(nearest_sheet(found)))
    print(text)
