"""`jaxspec bench drafters`: comparison of drafters on one target."""

import argparse

from jaxspec.cli.options import add_checkpoint, check_scales
from jaxspec.cli.reports import (
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

SUFFIXES = (".json", ".md", ".png")
DEFAULT = ["own", "jacobi", "recycling", "ngrams", "prompt-lookup"]


def add_parser(benchmarks) -> None:
    """Adds the parser of the benchmark."""
    parser = benchmarks.add_parser(
        "drafters",
        help="comparison of drafters on one target",
        description="Generates the same images with every combination of drafter, tree "
        "size, CFG scale and verifier. Reports tokens per call, drafting cost and "
        "speedup over plain decoding, and writes numbers, tables and a plot.",
        epilog="Example: jaxspec bench drafters --drafters own jacobi runs/eagle "
        "--nodes 16 57 --out docs/reports/drafters_cpu",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--drafters",
        nargs="+",
        default=DEFAULT,
        metavar="NAME",
        help="drafters, see `jaxspec generate --help`; folders are named by their last "
        f"part (default: {' '.join(DEFAULT)})",
    )
    add_lists(parser, nodes=([16, 57, 128], "tree sizes"))
    parser.add_argument(
        "--cfg-scales",
        nargs="+",
        type=float,
        default=[2.0, 3.0],
        metavar="S",
        help="CFG scales (default: 2 3)",
    )
    parser.add_argument(
        "--verifiers",
        nargs="+",
        default=["coupled"],
        metavar="VERIFIER",
        help="verifiers, see `jaxspec generate --help` (default: coupled)",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="text models: file of passages separated by empty lines, one per sequence",
    )
    parser.add_argument(
        "--length",
        type=int,
        metavar="N",
        help="tokens of each sequence (default: the length of the model)",
    )
    add_numbers(
        parser,
        num=(32, "number of images"),
        batch=(16, "batch size in images"),
        repeats=(1, "number of timed runs"),
        seed=(0, "seed of images and noise"),
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the rows of STEM.json and measure only missing ones",
    )
    add_compare(parser)
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark."""
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
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.bundle import load_bundle
    from jaxspec.pipeline.config import GenerationConfig
    from jaxspec.pipeline.drafters import load_drafter
    from jaxspec.pipeline.prompts import Prompts, spread_classes
    from jaxspec.pipeline.report import json_bytes
    from jaxspec.pipeline.verifiers import parse_verifier

    for name in arguments.verifiers:  # raises before models are loaded
        parse_verifier(name)
    bundle = load_bundle(arguments.checkpoint)
    loaded_drafters = [load_drafter(name, bundle) for name in arguments.drafters]
    classes = spread_classes(len(bundle.class_names), arguments.num)
    texts, scales = (), arguments.cfg_scales
    if bundle.image_tokenizer is None:
        texts, scales = read_texts(arguments.prompts, arguments.num, bundle), [1.0]
    prompts = Prompts.from_texts(texts) if texts else Prompts.from_classes(classes)
    settings = GenerationConfig(
        seed=arguments.seed,
        batch_size=arguments.batch,
        cfg_scale=scales[0],
        max_new_tokens=arguments.length,
    )
    options = {
        "checkpoint": [arguments.checkpoint] if arguments.checkpoint else [],
        "drafters": arguments.drafters,
        "nodes": arguments.nodes,
        "prompts": [Path(arguments.prompts).name] if texts else [],
        "length": [arguments.length] if arguments.length else [],
        "cfg-scales": [] if texts else [f"{scale:g}" for scale in scales],
        "verifiers": arguments.verifiers,
        "num": [arguments.num],
        "batch": [arguments.batch],
        "repeats": [arguments.repeats],
        "seed": [arguments.seed],
        "out": [arguments.out],
    }
    command = command_line("bench drafters", options)

    def save(result: dict) -> None:
        result = {"command": command, **result}
        write_file(arguments.out + ".json", json_bytes(result))

    finished_rows: list[dict] = []
    if arguments.resume:
        finished_rows = read_rows(
            arguments.out + ".json", len(prompts), settings.batch_size
        )
    result = bench_drafters(
        bundle,
        loaded_drafters,
        prompts,
        settings,
        nodes=arguments.nodes,
        cfg_scales=scales,
        verifiers=arguments.verifiers,
        repeats=arguments.repeats,
        finished_rows=finished_rows,
        save=save,
    )
    write_report(
        arguments.out,
        command,
        result,
        drafters_markdown,
        plot=drafters_plot,
        compare=(before, KEYS),
    )


def read_rows(file: str, count: int, batch_size: int) -> list[dict]:
    """Reads the rows of an earlier run; empty if the file does not exist.

    Raises:
      DataError: The file cannot be read, or has other images.
    """
    import json
    from pathlib import Path

    from jaxspec.errors import DataError

    try:
        result = json.loads(Path(file).read_bytes())
        sizes = result["images"], result["batch"]
        rows = [{**row, "cfg_scale": float(row["cfg_scale"])} for row in result["rows"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"cannot resume from '{file}' ({error!r}); write to another --out"
        ) from None
    if sizes != (count, batch_size):
        raise DataError(
            f"'{file}' has {sizes[0]} images in batches of {sizes[1]}; resume with the "
            "same --num and --batch, or write to another --out"
        )
    return rows


def read_texts(file: str | None, count: int, bundle) -> tuple[bytes, ...]:
    """Reads the beginnings of a file's passages, as prompts.

    Prompts are at most a quarter of the model's sequence length.

    Raises:
      ConfigError: No file was named.
      DataError: The file cannot be read, or has too few passages.
    """
    from jaxspec.errors import ConfigError, DataError
    from jaxspec.io.text_files import read_text, split_lines

    if file is None:
        raise ConfigError(f"bundle '{bundle.name}' generates text; give --prompts FILE")
    passages = "\n".join(split_lines(read_text(file))).split("\n\n")
    passages = [passage.strip().encode() for passage in passages]
    limit = bundle.prior.config.sequence_length // 4
    texts = [passage[:limit] for passage in passages if passage]
    if len(texts) < count:
        raise DataError(f"'{file}' has {len(texts)} passages; --num asks for {count}")
    step = len(texts) // count
    return tuple(texts[::step][:count])
