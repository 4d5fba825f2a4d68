"""Options of `jaxspec generate`, and their checks."""

import argparse

from jaxspec.cli.compile_cache import add_compile_cache
from jaxspec.cli.help import rare
from jaxspec.cli.options import (
    add_attention,
    add_checkpoint,
    add_devices,
    add_int8,
    add_order,
)

MOST = 1 << 12  # images of one sheet


def add_images(group) -> None:
    """Options of the model and of the images."""
    add_checkpoint(group, "fruits64_halton, for a --prompt emoji64")
    group.add_argument(
        "--num",
        type=int,
        metavar="N",
        help="number of images (default: 16)",
    )
    group.add_argument(
        "--classes",
        metavar="LIST",
        help="names or numbers, divided by commas, repeated as often as needed "
        "(default: spread over all classes)",
    )
    group.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="caption of an image, for a text-to-image model; or a message to answer, "
        "for a model of text; repeatable",
    )
    group.add_argument(
        "--no-chat",
        action="store_true",
        help=rare("continue each --prompt instead of answering it"),
    )
    group.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help=rare("most tokens of a text (default: 256)"),
    )


def add_continue(group) -> None:
    """Options of an image that is continued."""
    group.add_argument(
        "--continue",
        dest="continue_image",
        metavar="FILE",
        help="image whose upper part every image begins with",
    )
    group.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="rows of its tokens that are kept (default: half of them)",
    )


def add_speculation(group) -> None:
    """Options of drafter, tree and verifier."""
    group.add_argument(
        "--drafter",
        default="own",
        metavar="NAME",
        help="own (the checkpoint's, else jacobi), unmixed (the checkpoint's without "
        "the target's last logits), jacobi, recycling, ngrams, "
        "prompt-lookup, early-exit-LAYERS, the folder of another that was trained for "
        "this prior, or none, which decodes plainly (default: %(default)s)",
    )
    group.add_argument(
        "--tree",
        metavar="TREE",
        default="auto",
        help="shape of the drafts: auto (the fastest on this device, or plain "
        "decoding), a published name (naive_extend_57, mc_sim_7b_63, ...), "
        "chain-LENGTH, optimal-NODES, or paths of ranks such as 0,1,00 (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--verifier",
        default="coupled",
        metavar="VERIFIER",
        help="coupled (same tokens as plain decoding); rejection, block, kseq, "
        "greedy-set (same distribution); or, LOSSY, lantern:k=10,lam=2, "
        "coupled-relaxed:k=10,budget=0.1,radius=0.5, grouped, annealed, entropic, "
        "typical, skipped (default: %(default)s)",
    )
    group.add_argument(
        "--compare",
        action="store_true",
        help="also decode plainly, and report both times and whether the tokens are "
        "identical",
    )


def add_output(group) -> None:
    """Options of files that are written."""
    group.add_argument(
        "--out",
        metavar="FILE",
        help="file of the images: .png, .webp, or .jpg, which changes them a little "
        "(default: samples.png)",
    )
    group.add_argument(
        "--watermark",
        metavar="KEYFILE",
        help="mark the images with the key of a file, which is written if it does not "
        "exist; `jaxspec detect` finds the mark in single images (--num 1, --out-dir)",
    )
    group.add_argument(
        "--report",
        metavar="FILE",
        help="write the numbers as JSON; with /dev/stdout the table goes to stderr",
    )


def add_many(group) -> None:
    """Options of prompts in a file."""
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help="one class (name or number) or caption a line, in UTF-8; '-' reads stdin",
    )
    group.add_argument(
        "--out-dir",
        metavar="DIR",
        help="folder for an image of each line, and report.json",
    )


def add_programs(group) -> None:
    """Options of devices and programs."""
    group.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="most images side by side (default: 8)",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of weights and caches; images are identical in float32, and up to "
        "near-ties in bfloat16 (default: %(default)s)",
    )
    add_devices(group)
    group.add_argument(
        "--cache-stages",
        type=int,
        metavar="N",
        help=rare(
            "number of cache sizes: faster for large batches, compiled N times as long "
            "(default: 1)"
        ),
    )
    add_attention(group)
    add_int8(group)
    add_order(group)
    add_compile_cache(group)


def check_options(arguments: argparse.Namespace) -> None:
    """Fills in defaults, and refuses options that do not go together."""
    import os

    from jaxspec.errors import ConfigError
    from jaxspec.io.images import format_of
    from jaxspec.io.writing import check_writable

    arguments.given_num, arguments.given_out = arguments.num, arguments.out
    arguments.num = 16 if arguments.num is None else arguments.num
    arguments.out = arguments.out or "samples.png"
    if arguments.coordinator:
        raise ConfigError("several processes generate --prompts into --out-dir")
    if arguments.compare and arguments.drafter == "none":
        raise ConfigError("--compare needs drafts; leave out --drafter none")
    if arguments.num < 1:
        raise ConfigError(f"--num {arguments.num}: ask for at least one image")
    if arguments.num > MOST:
        raise ConfigError(
            f"--num {arguments.num}: a sheet holds at most {MOST} images; use "
            "--prompts FILE --out-dir DIR for more"
        )
    report = arguments.report
    if report and os.path.realpath(report) == os.path.realpath(arguments.out):
        raise ConfigError(f"--out and --report are both '{arguments.out}'")
    format_of(arguments.out)
    for path in filter(None, (arguments.out, arguments.report)):
        check_writable(path)


def check_images(arguments: argparse.Namespace) -> None:
    """Refuses options of texts."""
    from jaxspec.errors import ConfigError

    for name in ("no_chat", "max_tokens"):
        if getattr(arguments, name):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} is for texts, and this model makes images")
