"""`jaxspec bench drafters`: drafters side by side on one target."""

import argparse

from jaxspec.cli.bench.output import (
    add_compare,
    add_lists,
    add_numbers,
    add_out,
    check_numbers,
    check_out,
    command_line,
    read_report,
    write_report,
)
from jaxspec.cli.options import add_checkpoint, check_scales

SUFFIXES = (".json", ".md", ".png")
DEFAULT = ["own", "jacobi", "recycling", "ngrams", "prompt-lookup"]


def add_parser(measurements) -> None:
    """Registers the sub-command."""
    parser = measurements.add_parser(
        "drafters",
        help="drafters side by side on one target",
        description="Draws the same images with every option_values drafter, tree size, "
        "guidance scale and rule: tokens a call, the cost of drafting, wall-clock "
        "against plain decoding in the same run. Writes numbers, tables and a plot.",
        epilog="Example: jaxspec bench drafters --drafters own jacobi runs/eagle "
        "--nodes 16 57 --out docs/reports/drafters_cpu",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--drafters",
        nargs="+",
        default=DEFAULT,
        metavar="NAME",
        help="see `jaxspec generate --help`; folders are told by their last name "
        f"(default: {' '.join(DEFAULT)})",
    )
    add_lists(parser, nodes=([16, 57, 128], "sizes of trees"))
    parser.add_argument(
        "--cfg-scales",
        nargs="+",
        type=float,
        default=[2.0, 3.0],
        metavar="S",
        help="guidance scales (default: 2 3)",
    )
    parser.add_argument(
        "--rules",
        nargs="+",
        default=["coupled"],
        metavar="RULE",
        help="see `jaxspec generate --help` (default: coupled)",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="for a model of text: passages parted by empty lines, one a sequence",
    )
    parser.add_argument(
        "--length",
        type=int,
        metavar="N",
        help="tokens of each sequence (default: as many as the model makes)",
    )
    add_numbers(
        parser,
        num=(32, "images"),
        batch=(16, "images side by side"),
        repeats=(1, "timed runs"),
        seed=(0, "of images and noise"),
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the numbers in OUT.json: measure only the rows they lack",
    )
    add_compare(parser)
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from pathlib import Path

    check_numbers(arguments, "num", "batch", "repeats", nodes=2)
    check_out(arguments.out, *SUFFIXES)
    check_scales(*arguments.cfg_scales)
    before = read_report(arguments.compare)

    from jaxspec.bench.drafters import (
        KEYS,
        bench_drafters,
        drafters_markdown,
        drafters_plot,
    )
    from jaxspec.bundle import load_bundle
    from jaxspec.helpers import load_drafter
    from jaxspec.pipeline import Settings, spread_classes
    from jaxspec.report import json_bytes
    from jaxspec.rules import parse_verifier
    from jaxspec.writing import write_file

    for name in arguments.rules:  # told before anything is loaded
        parse_verifier(name)
    bundle = load_bundle(arguments.checkpoint)
    loaded_drafters = [load_drafter(name, bundle) for name in arguments.drafters]
    classes = spread_classes(len(bundle.class_names), arguments.num)
    texts, scales = (), arguments.cfg_scales
    if bundle.image_tokenizer is None:
        texts = read_texts(arguments.prompts, arguments.num, bundle)
        classes, scales = tuple(range(len(texts))), [1.0]
    settings = Settings(
        classes,
        seed=arguments.seed,
        batch=arguments.batch,
        cfg_scale=scales[0],
        texts=texts,
        length=arguments.length,
    )
    options = {
        "checkpoint": [arguments.checkpoint] if arguments.checkpoint else [],
        "drafters": arguments.drafters,
        "nodes": arguments.nodes,
        "prompts": [Path(arguments.prompts).name] if texts else [],
        "length": [arguments.length] if arguments.length else [],
        "cfg-scales": [] if texts else [f"{scale:g}" for scale in scales],
        "rules": arguments.rules,
        "num": [arguments.num],
        "batch": [arguments.batch],
        "repeats": [arguments.repeats],
        "seed": [arguments.seed],
        "out": [arguments.out],
    }
    command = command_line("bench drafters", options)

    def keep(result: dict) -> None:
        result = {"command": command, **result}
        write_file(arguments.out + ".json", json_bytes(result))

    result = bench_drafters(
        bundle,
        loaded_drafters,
        settings,
        nodes=arguments.nodes,
        scales=scales,
        rules=arguments.rules,
        repeats=arguments.repeats,
        known=read_rows(arguments.out + ".json", settings) if arguments.resume else (),
        keep=keep,
    )
    write_report(
        arguments.out,
        command,
        result,
        drafters_markdown,
        plot=drafters_plot,
        compare=(before, KEYS),
    )


def read_rows(file: str, settings) -> list[dict]:
    """Rows that an earlier run left; none if there is no such file.

    Raises:
      DataError: it cannot be read, or is of other images.
    """
    import json
    from pathlib import Path

    from jaxspec.errors import DataError

    try:
        result = json.loads(Path(file).read_bytes())
        was = result["images"], result["batch"]
        rows = [{**row, "cfg_scale": float(row["cfg_scale"])} for row in result["rows"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot go on with '{file}' ({error!r})") from None
    if was != (len(settings.classes), settings.batch):
        raise DataError(
            f"'{file}' holds {was[0]} images, {was[1]} at a time; go on with the "
            "same --num and --batch, or write to another --out"
        )
    return rows


def read_texts(file: str | None, count: int, bundle) -> tuple[bytes, ...]:
    """The beginnings of a file's passages, short enough for the model to go on.

    Raises:
      ConfigError: no file was named.
      DataError: it cannot be read, or holds too few passages.
    """
    from jaxspec.errors import ConfigError, DataError
    from jaxspec.text_files import read_text, split_lines

    if file is None:
        raise ConfigError(f"bundle '{bundle.name}' makes text; give --prompts FILE")
    passages = "\n".join(split_lines(read_text(file))).split("\n\n")
    passages = [passage.strip().encode() for passage in passages]
    most = bundle.prior.config.sequence_length // 4
    texts = [passage[:most] for passage in passages if passage]
    if len(texts) < count:
        raise DataError(f"'{file}' has {len(texts)} passages; --num asks for {count}")
    step = len(texts) // count
    return tuple(texts[::step][:count])
