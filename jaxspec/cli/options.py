"""Options that several commands share."""

import argparse


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint`."""
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="bundle folder with tokenizer/, prior/ and perhaps drafter/ and "
        "text_encoder/ "
        "(default: the embedded one)",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Temperature, filters, guidance."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="0 is greedy (default: %(default)s)",
    )
    group.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="keep the K likeliest codes; 0 keeps all (default: %(default)s)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="keep the likeliest codes up to mass P; 1 keeps all "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--cfg-scale",
        type=float,
        default=2.0,
        metavar="S",
        help="classifier-free guidance; 1 is none (default: %(default)s)",
    )
    group.add_argument(
        "--cfg-interval",
        type=int,
        default=-1,
        metavar="STEP",
        help="guide only up to this step; -1 guides always (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="same seed, same pictures (default: %(default)s)",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Where pictures come from."""
    parser.add_argument(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="where tfds keeps prepared data (default: %(default)s)",
    )
    parser.add_argument(
        "--manual-dir",
        metavar="DIR",
        help="folder of files that tfds cannot download itself",
    )
