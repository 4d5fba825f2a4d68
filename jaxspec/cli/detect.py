"""`jaxspec detect`: whether images carry a watermark."""

import argparse

from jaxspec.cli.options import add_checkpoint


def add_parser(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "detect",
        help="test images for a watermark",
        description="Tests images for the watermark of a key, and prints the "
        "probability that an image made without this key has as many green tokens.",
        epilog="Example: jaxspec generate --watermark my.key --out sheet.png; "
        "jaxspec detect image.png --watermark my.key",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files of single images, no sheets"
    )
    parser.add_argument(
        "--watermark",
        required=True,
        metavar="KEYFILE",
        help="file of the key, as `jaxspec generate` wrote it",
    )
    add_checkpoint(parser, "fruits64_halton")
    parser.add_argument(
        "--encoder",
        metavar="DIR",
        help="tokenizer of the same codes that was trained to find tokens again "
        "(`jaxspec train tokenizer --start DIR` with "
        "`--set train_tokenizer.encoder_alone=true`)",
    )
    parser.add_argument(
        "--false-alarms",
        type=float,
        default=1e-3,
        metavar="P",
        help="largest probability of a false alarm (default: %(default)s)",
    )
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--together",
        action="store_true",
        help="one test of all images, which finds weaker marks",
    )
    several.add_argument(
        "--crops",
        action="store_true",
        help="also test every place of the grid of tokens, for images that were cut "
        "out of marked ones and not resized",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints a line for each image.

    Raises:
      CheckpointError: a model cannot be read.
      ConfigError: an option is impossible.
      DataError: an image or the key cannot be read.
    """
    from pathlib import Path

    from jaxspec.errors import ConfigError
    from jaxspec.pipeline.bundle import load_bundle
    from jaxspec.pipeline.embedded import find_folder
    from jaxspec.pipeline.encoding import encode_images
    from jaxspec.pipeline.watermark import Watermark, with_encoder
    from jaxspec.watermark import read_key

    if not 0 < arguments.false_alarms < 1:
        raise ConfigError(
            f"--false-alarms {arguments.false_alarms}: give a probability between 0 "
            "and 1"
        )
    key = read_key(Path(arguments.watermark))
    bundle = load_bundle(arguments.checkpoint)
    mark = Watermark.of(bundle, key)
    if arguments.encoder is not None:
        bundle = with_encoder(bundle, find_folder(arguments.encoder))
    if arguments.crops:
        tests = [(x, mark.detect_crop(bundle, x)) for x in arguments.images]
    else:
        tokens = encode_images(bundle, arguments.images)
        parts = list(zip(arguments.images, tokens, strict=True))
        if arguments.together:
            parts = [(f"{len(tokens)} images", tokens)]
        tests = [(name, mark.detect(row)) for name, row in parts]
    for name, found in tests:
        answer = "yes" if found.p_value <= arguments.false_alarms else "no"
        # Products of many halves are no longer above 0.
        chance = f"{found.p_value:.1e}" if found.p_value > 0 else "below 1e-300"
        if found.tests > 1:
            chance = f"at most {chance} for any of {found.tests} places"
        print(
            f"{name}: watermark {answer} ({found.green} of {found.tokens} tokens are "
            f"green, probability {chance} without the key)"
        )
