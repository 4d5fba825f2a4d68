"""`jaxspec generate`: images, by speculative decoding."""

import argparse
import sys

from jaxspec.cli.compile_cache import add_compile_cache
from jaxspec.cli.help import rare
from jaxspec.cli.options import (
    add_attention,
    add_checkpoint,
    add_devices,
    add_int8,
    add_order,
    add_sampling,
)

MOST = 1 << 12  # images of one sheet


def add_parser(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "generate",
        usage="%(prog)s [OPTION ...]",
        help="generate images",
        description="Generates a grid of images by speculative decoding, and counts "
        "the calls of the model.",
        epilog="Examples: jaxspec generate --prompt 'cat face, flat'; jaxspec generate "
        "--classes 'Tomato 3' --num 8; jaxspec generate --prompts FILE --out-dir DIR",
    )
    images = parser.add_argument_group("images")
    _add_images(images)
    _add_continue(images)
    add_sampling(parser)
    _add_speculation(parser.add_argument_group("speculation"))
    _add_output(parser.add_argument_group("output"))
    _add_many(
        parser.add_argument_group(
            "many images",
            "each in a file of its own; a second run continues an interrupted one",
        )
    )
    _add_devices(parser.add_argument_group("devices"))
    parser.set_defaults(run=run)


def _add_images(group) -> None:
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


def _add_continue(group) -> None:
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


def _add_speculation(group) -> None:
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


def _add_output(group) -> None:
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


def _add_many(group) -> None:
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


def _add_devices(group) -> None:
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


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxspec.errors import ConfigError

    if bool(arguments.prompts) != bool(arguments.out_dir):
        raise ConfigError("--prompts FILE and --out-dir DIR go together")
    if arguments.rows is not None and not arguments.continue_image:
        raise ConfigError("--rows N needs an image: --continue FILE")
    if arguments.prompts and arguments.continue_image:
        raise ConfigError("--continue FILE is for a grid, without --prompts")
    if arguments.prompts:
        from jaxspec.cli.generate_many import run_many

        return run_many(arguments)
    _check_options(arguments)

    from jaxspec.cli.models import given_settings, load_models, print_start, with_tree
    from jaxspec.cli.options import chosen_mesh
    from jaxspec.io.images import format_of
    from jaxspec.pipeline.settings import resolve_config

    settings = given_settings(arguments)  # raises before anything is loaded
    models = load_models(arguments, chosen_mesh(arguments))
    config = resolve_config(models.bundle, settings)
    if models.bundle.image_tokenizer is None:
        if arguments.watermark:
            raise ConfigError("--watermark is for images, and this model makes text")
        from jaxspec.cli.generate_text import run_text

        return run_text(arguments, models, config)
    _check_images(arguments)
    # Before anything is generated, so that nothing is lost by a key that fails.
    mark = None
    if arguments.watermark:
        mark = watermark_of(models.bundle, arguments.watermark)
    if arguments.given_num is None and not arguments.prompt:
        arguments.num = len(models.bundle.examples) or arguments.num
    side = models.bundle.tokenizer.config.image_size
    form = format_of(arguments.out, arguments.num, side)
    prompts, cut = _prompts(arguments, models.bundle)
    prompts = _continued(arguments, models.bundle, prompts)
    models = with_tree(models, prompts, config, drafting=arguments.compare)
    if arguments.compare and models.loaded is None:
        raise ConfigError(
            f"--compare needs drafts, and nothing drafts for bundle "
            f"'{models.bundle.name}'; leave it out"
        )
    print_start(models, config, arguments.num, prompts.length)
    results = generate_all(models, prompts, config, arguments.compare)
    _write(arguments, models, prompts, config, results, form, cut, mark)


def _check_options(arguments: argparse.Namespace) -> None:
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


def _check_images(arguments: argparse.Namespace) -> None:
    """Refuses options of texts."""
    from jaxspec.errors import ConfigError

    for name in ("no_chat", "max_tokens"):
        if getattr(arguments, name):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} is for texts, and this model makes images")


def _prompts(arguments: argparse.Namespace, bundle):
    """Prompts of all images, and the captions among them that are cut."""
    from jaxspec.cli.options import print_cut_captions
    from jaxspec.pipeline.prompt_inputs import resolve_prompts

    cut = {}
    if arguments.prompt and bundle.prior.config.condition == "caption":
        named = {f"prompt {i}": text for i, text in enumerate(arguments.prompt)}
        cut = print_cut_captions(bundle, named)
    prompts = resolve_prompts(
        bundle,
        None if arguments.classes is None else arguments.classes.split(","),
        arguments.prompt,
        count=arguments.num,
        names=("classes: give --classes", "captions: give --prompt"),
    )
    return prompts, cut


def _continued(arguments: argparse.Namespace, bundle, prompts):
    """The prompts, with the first rows or levels of an image if one is continued."""
    from jaxspec.config.token_kinds import row_ends
    from jaxspec.pipeline.encoding import encode_images
    from jaxspec.pipeline.prompt_inputs import resolve_prefix

    if not arguments.continue_image:
        return prompts
    tokens = encode_images(bundle, [arguments.continue_image])
    rows = arguments.rows
    if rows is None:
        rows = len(row_ends(bundle.tokenizer.config)) // 2
    prefix = tokens.repeat(len(prompts), axis=0)
    return resolve_prefix(bundle, prompts, prefix, rows)


def generate_all(models, prompts, config, compare: bool):
    """Results of the generation, and of plain decoding or None."""
    from functools import partial

    from tqdm import tqdm

    from jaxspec.cli.options import print_low_acceptance
    from jaxspec.pipeline.generation import generate
    from jaxspec.speculative.trees.tree import Tree

    bundle, loaded, tree, _ = models
    total = (1 + compare) * len(prompts)
    unit = "image" if bundle.image_tokenizer else "text"
    with tqdm(total=total, desc="generating", unit=unit) as bar:

        def advance(count):
            if not count:  # the remaining time is estimated without compilation
                bar.unpause()
            bar.set_postfix_str("", refresh=not count)
            bar.update(count)

        bar.set_postfix_str("compiling")
        run = partial(
            generate, bundle, prompts, config, loaded=loaded, progress=advance
        )
        result = run(tree)
        print_low_acceptance(loaded, result, config)
        if not compare:
            return result, None
        bar.set_postfix_str("compiling plain decoding")
        return result, run(Tree.root())


def watermark_of(bundle, file: str):
    """The watermark of a key file, which is written if it does not exist."""
    from pathlib import Path

    from jaxspec.pipeline.watermark import Watermark, codebook_of
    from jaxspec.watermark import new_key, read_key, write_key

    path, codebook = Path(file), codebook_of(bundle)
    found = read_key(path) if path.exists() else None
    key = (found or new_key()).paired(codebook)
    if key is not found:
        write_key(path, key)
        print(f"wrote {'pairs' if found else 'a new key'}: {path}", file=sys.stderr)
    return Watermark.of(bundle, key)


def _write(arguments, models, prompts, config, results, form, cut, mark) -> None:
    """Writes the sheet and the report, and prints the table.

    A single image with a mark is written as it is, so that the mark can be found in it.
    """
    from jaxspec.cli.options import table_stream
    from jaxspec.io.images import grid_image, image_bytes
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.decoding import decode_images
    from jaxspec.pipeline.engine import bundle_for
    from jaxspec.pipeline.prompt_inputs import prompt_labels
    from jaxspec.pipeline.report import generation_report, generation_table, json_bytes

    bundle, loaded, tree, _ = models
    result, plain = results
    tokens = result.tokens
    if mark is not None:
        tokens = mark.mark(bundle_for(bundle, loaded), prompts, config, tokens)
    images = decode_images(bundle, tokens)
    alone = mark is not None and len(images) == 1
    sheet = images[0] if alone else grid_image(images)
    report = generation_report(bundle, prompts, config, tree, result, plain, loaded)
    report["labels"] = prompt_labels(bundle, prompts)
    report |= {"cut_captions": cut} if prompts.texts else {}
    write_file(arguments.out, image_bytes(sheet, form))
    if arguments.report:
        write_file(arguments.report, json_bytes(report))
    stream = table_stream(arguments.out, arguments.report)
    # A terminal shows the heading already, above the progress bar.
    heading = not (stream.isatty() and sys.stderr.isatty())
    print(generation_table(report, heading=heading), file=stream)
    print(f"wrote {arguments.out}", file=stream)
