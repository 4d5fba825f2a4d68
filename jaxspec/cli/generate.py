"""`jaxspec generate`: images, by speculative decoding."""

import argparse
import sys

from jaxspec.cli.generate_options import (
    add_continue,
    add_images,
    add_many,
    add_output,
    add_programs,
    add_speculation,
    check_images,
    check_options,
)
from jaxspec.cli.options import add_sampling


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
    add_images(images)
    add_continue(images)
    add_sampling(parser)
    add_speculation(parser.add_argument_group("speculation"))
    add_output(parser.add_argument_group("output"))
    add_many(
        parser.add_argument_group(
            "many images",
            "each in a file of its own; a second run continues an interrupted one",
        )
    )
    add_programs(parser.add_argument_group("devices"))
    parser.set_defaults(run=run)


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
    check_options(arguments)

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
    check_images(arguments)
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
