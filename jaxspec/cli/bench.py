"""`jaxspec bench`: measurements, written as JSON and Markdown."""

import argparse

from jaxspec.cli.options import add_checkpoint


def add_parser(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "bench",
        help="measure generation",
        description="Measures speculative against plain decoding for every asked "
        "combination of tree, batch and guidance, in one process, after a warm-up, "
        "medians over repeats. Times leave compilation out.",
        epilog="Example: jaxspec bench generate --trees chain-4,naive_extend_57 "
        "--batches 1,8 --cfg-scales 1,2,3 --num 64 --out docs/reports/fruits64",
    )
    parser.add_argument("what", choices=("generate",))
    add_checkpoint(parser)
    parser.add_argument(
        "--trees",
        metavar="LIST",
        help="divided by commas; see `jaxspec generate --help` "
        "(default: the device's default tree)",
    )
    parser.add_argument("--batches", default="8", metavar="LIST")
    parser.add_argument("--cfg-scales", default="2", metavar="LIST")
    parser.add_argument("--num", type=int, default=64, metavar="N", help="pictures")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--out",
        required=True,
        metavar="STEM",
        help="writes STEM.json and STEM.md",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxspec.errors import ConfigError
    from jaxspec.images import check_writable

    def numbers(option, text, kind):
        try:
            return [kind(word) for word in text.split(",")]
        except ValueError:
            raise ConfigError(
                f"{option} {text}: give numbers divided by commas"
            ) from None

    batches = numbers("--batches", arguments.batches, int)
    scales = numbers("--cfg-scales", arguments.cfg_scales, float)
    if arguments.num < 1 or arguments.repeats < 1:
        raise ConfigError("--num and --repeats must be at least 1")
    stem = arguments.out
    for suffix in (".json", ".md"):
        check_writable(stem + suffix)

    from jaxspec.bench.generation import bench_generation, generation_markdown
    from jaxspec.bundle import load_bundle
    from jaxspec.images import write_file
    from jaxspec.report import json_bytes
    from jaxspec.spec.named_trees import named_tree
    from jaxspec.trees import default_tree

    trees = {"default": default_tree()}
    if arguments.trees:
        names = arguments.trees.split(",")
        trees = {name: named_tree(name) for name in names}
    bundle = load_bundle(arguments.checkpoint)
    command = (
        f"jaxspec bench generate --num {arguments.num} --batches {arguments.batches} "
        f"--cfg-scales {arguments.cfg_scales} --repeats {arguments.repeats} "
        f"--seed {arguments.seed}"
        + (f" --trees {arguments.trees}" if arguments.trees else "")
        + f" --out {stem}"
    )
    rows = bench_generation(
        bundle,
        trees,
        batches,
        scales,
        num=arguments.num,
        repeats=arguments.repeats,
        seed=arguments.seed,
    )
    result = {"command": command, "checkpoint": bundle.name, "rows": rows}
    write_file(stem + ".json", json_bytes(result))
    text = generation_markdown(result)
    write_file(stem + ".md", text.encode())
    print(text)
