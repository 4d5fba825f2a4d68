"""`jaxspec bench generate`: speculative and plain decoding."""

import argparse

from jaxspec.cli.bench.speed import (
    SUFFIXES,
    add_speed,
    speed_option_values,
    speed_options,
)
from jaxspec.cli.options import add_attention, add_int8, check_scales
from jaxspec.cli.reports import (
    add_lists,
    add_numbers,
    check_numbers,
    check_out,
    command_line,
    read_report,
    write_report,
)

NAMES = (
    "trees",
    "batches",
    "cfg-scales",
    "num",
    "tokens",
    "accept",
    "attention",
    "seed",
)


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "generate",
        help="speculative decoding compared with plain decoding",
        description="Compares speculative with plain decoding for every combination of "
        "model, tree, batch size and CFG scale, in one process. Reports medians over "
        "repeats after a warm-up, without compilation, and the costs of a round.",
        epilog="Examples: jaxspec bench generate --trees chain-4 naive_extend_57 "
        "--batches 1 8 --cfg-scales 1 2 3 --num 64 --out docs/reports/fruits64; "
        "jaxspec bench generate --models gpt-xl --accept 4.2 --num 1 --out speed",
    )
    add_speed(parser, variants=False, repeats=3)
    parser.add_argument(
        "--trees",
        nargs="+",
        metavar="TREE",
        help="trees, see `jaxspec generate --help` (default: default of the device)",
    )
    parser.add_argument(
        "--cfg-scales",
        nargs="+",
        type=float,
        default=[2.0],
        metavar="S",
        help="CFG scales (default: 2)",
    )
    add_lists(parser, batches=([8], "batch sizes in images"))
    add_numbers(
        parser, num=(64, "number of images"), seed=(0, "seed of images and noise")
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="tokens of each image (default: all)"
    )
    parser.add_argument(
        "--accept",
        type=float,
        metavar="TOKENS",
        help="mean number of tokens that each round is forced to emit, regardless of "
        "its draft: times the loop without a trained drafter; images are meaningless",
    )
    add_attention(parser)
    add_int8(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
    options = speed_options(arguments)
    check_numbers(arguments, "num", "batches")
    if arguments.tokens is not None:
        check_numbers(arguments, "tokens")
    check_out(arguments.out, *SUFFIXES)
    check_scales(*arguments.cfg_scales)
    before = read_report(arguments.compare)

    from jaxspec.bench.generation import (
        KEYS,
        bench_generation,
        generation_markdown,
        generation_plot,
    )
    from jaxspec.bench.models import find_model
    from jaxspec.bench.roofline.ceilings import measure_ceilings
    from jaxspec.evaluate.tables import environment
    from jaxspec.pipeline.drafters import bundled_drafter
    from jaxspec.speculative.trees.parsing import deepest, default_tree, parse_tree

    for name in arguments.trees or []:  # raises before models are loaded
        parse_tree(name)
    rows = []
    for model in arguments.models:
        bundle = find_model(
            model,
            grid=options["grid"],
            dtype=options["dtype"],
            checkpoint=options["checkpoint"],
            int8=arguments.int8,
        )
        depth = deepest(bundled_drafter(bundle).drafter)
        trees = {"default": default_tree(max_depth=depth)}
        if arguments.trees:
            trees = {name: parse_tree(name, depth) for name in arguments.trees}
        rows += bench_generation(
            bundle,
            trees,
            arguments.batches,
            arguments.cfg_scales,
            num=arguments.num,
            repeats=arguments.repeats,
            seed=arguments.seed,
            forced=arguments.accept,
            length=arguments.tokens,
            attention=arguments.attention,
        )
    arguments.cfg_scales = [f"{scale:g}" for scale in arguments.cfg_scales]
    result = {
        "dtype": options["dtype"],
        "repeats": arguments.repeats,
        "ceilings": measure_ceilings(options["dtype"]).fields(),
        "rows": rows,
        **environment(),
    }
    write_report(
        arguments.out,
        command_line("bench generate", speed_option_values(arguments, *NAMES))
        + " --int8" * arguments.int8,
        result,
        generation_markdown,
        plot=generation_plot,
        compare=(before, KEYS),
    )
