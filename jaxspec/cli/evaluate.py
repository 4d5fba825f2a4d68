"""Command `jaxspec eval`: measurements of models and images on held-out data."""

import argparse

from jaxspec.cli.captions import add_captions
from jaxspec.cli.compile_cache import add_compile_cache
from jaxspec.cli.options import add_checkpoint, add_data, check_scales
from jaxspec.cli.relaxation import add_relaxation

SUFFIXES = (".json", ".md", ".png")


def add_parser(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "eval",
        help="measure a tokenizer, a prior, or several verifiers",
        description="Measures models and images against held-out data, and verifiers.",
    )
    parts = parser.add_subparsers(dest="part", required=True)
    for name, words in (
        ("tokenizer", "PSNR in dB, share of the codebook in use"),
        ("prior", "nats per token, entropy of its predictions"),
    ):
        part = parts.add_parser(
            name,
            help=words,
            description=f"Measures a {name} on a split: {words}.",
            epilog=f"Example: jaxspec eval {name} --data fruits360_64 "
            "--manual-dir DIR_OF_FRUITS360",
        )
        _add_source(part)
        part.set_defaults(run=run_model)
    _add_images(parts)
    add_captions(parts)
    add_relaxation(parts)


def _add_source(parser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--data", required=True, metavar="NAME", help="tfds name of the data set"
    )
    parser.add_argument(
        "--split", default="test", help="tfds split (default: %(default)s)"
    )
    add_data(parser)
    add_compile_cache(parser)


def _add_images(parts) -> None:
    from jaxspec.cli.reports import add_numbers, add_out

    parser = parts.add_parser(
        "images",
        help="quality of the images that each verifier generates",
        description="Generates images by plain decoding and with each verifier, for "
        "several seeds. Measures Frechet distance, precision and recall against "
        "held-out images and class accuracy (all with a small classifier), the "
        "likelihood under the target, and the distortion against plain decoding with "
        "the same seed. Writes numbers, a table, and plots against tokens per call.",
        epilog="Example: jaxspec eval images --data fruits360_64 --manual-dir "
        "DIR_OF_FRUITS360 --verifiers coupled lantern:k=10,lam=2 --out quality",
    )
    _add_source(parser)
    parser.add_argument(
        "--classifier",
        metavar="DIR",
        help="classifier from `jaxspec train classifier` (default: the bundle's, "
        "else that of fruits64)",
    )
    parser.add_argument(
        "--verifiers",
        nargs="+",
        default=["coupled"],
        metavar="VERIFIER",
        help="verifiers; see `jaxspec generate --help` (default: coupled)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="N",
        help="seeds of the noise, at least two (default: 0 1 2)",
    )
    parser.add_argument(
        "--cfg-scale",
        type=float,
        default=2.0,
        metavar="S",
        help="CFG scale (default: 2)",
    )
    parser.add_argument(
        "--tree",
        default="optimal-57",
        help="draft tree; see `jaxspec generate --help` (default: %(default)s)",
    )
    parser.add_argument(
        "--drafter",
        default="own",
        metavar="NAME",
        help="drafter; see `jaxspec generate --help` (default: own)",
    )
    add_numbers(
        parser,
        num=(256, "images for each seed"),
        batch=(16, "images generated together"),
    )
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run_images)


def run_model(arguments: argparse.Namespace) -> None:
    """Runs `jaxspec eval tokenizer` and `jaxspec eval prior`."""
    import tempfile
    from pathlib import Path

    from jaxspec.config import MARConfig
    from jaxspec.data.image_tokens import encode_source
    from jaxspec.errors import ConfigError
    from jaxspec.evaluate.likelihood import likelihood_metrics
    from jaxspec.evaluate.masked_loss import heldout_masked_loss
    from jaxspec.evaluate.reconstruction import prefix_metrics, reconstruction_metrics
    from jaxspec.evaluate.scale_likelihood import scale_likelihood
    from jaxspec.pipeline.bundle import load_bundle
    from jaxspec.pipeline.embedded import CLASSES

    bundle = load_bundle(arguments.checkpoint or CLASSES)
    if arguments.part == "prior" and bundle.family == "masked":
        raise ConfigError(
            f"the tokens of bundle '{bundle.name}' have no likelihood in order; its "
            "card has the held-out loss of masked ones"
        )
    tokenizer = bundle.tokenizer.model
    scales = getattr(tokenizer, "scales", None)
    source = _source(arguments, bundle)
    if arguments.part == "tokenizer":
        metrics = reconstruction_metrics(tokenizer, bundle.tokenizer.params, source)
        metrics |= prefix_metrics(tokenizer, bundle.tokenizer.params, source)
    else:
        with tempfile.TemporaryDirectory() as folder:
            sequences = encode_source(
                tokenizer,
                bundle.tokenizer.params,
                source,
                name=arguments.split,
                flips=False,
                cache_dir=Path(folder),
            )
        model, params = bundle.prior.model, bundle.prior.params
        if isinstance(bundle.prior.config, MARConfig):
            loss = heldout_masked_loss(model, params, sequences)
            metrics = {"masked_loss": loss}
        elif scales is None:
            metrics = likelihood_metrics(model, params, sequences)
        else:
            quantizer = bundle.tokenizer.params
            metrics = scale_likelihood(model, scales, params, quantizer, sequences)
    for name, value in metrics.items():
        print(f"{name:12} {value:.4f}")


def _source(arguments, bundle):
    from jaxspec.data.tfds_images import tfds_images

    return tfds_images(
        arguments.data,
        arguments.split,
        bundle.tokenizer.config.image_size,
        arguments.data_dir,
        arguments.manual_dir,
    )


def run_images(arguments: argparse.Namespace) -> None:
    """Runs `jaxspec eval images`."""

    from jaxspec.cli.reports import (
        check_numbers,
        check_out,
        command_line,
        with_plot,
    )
    from jaxspec.errors import ConfigError

    check_numbers(arguments, "batch", num=4)
    if len(arguments.seeds) < 2 or len(set(arguments.seeds)) < len(arguments.seeds):
        raise ConfigError("--seeds: set at least two different seeds")
    if len(set(arguments.verifiers)) < len(arguments.verifiers):
        raise ConfigError("--verifiers: name each verifier once")
    check_out(arguments.out, *SUFFIXES)
    check_scales(arguments.cfg_scale)

    from tqdm import tqdm

    from jaxspec.checkpoint import load_checkpoint
    from jaxspec.evaluate.quality import (
        classifier_features,
        measure_quality,
        read_heldout,
    )
    from jaxspec.evaluate.quality_report import quality_markdown, quality_plot
    from jaxspec.io.images import png_bytes
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.bundle import load_bundle, token_by_token
    from jaxspec.pipeline.config import GenerationConfig
    from jaxspec.pipeline.drafters import load_drafter
    from jaxspec.pipeline.embedded import CLASSES, find_folder
    from jaxspec.pipeline.prompts import Prompts, spread_classes
    from jaxspec.pipeline.report import json_bytes
    from jaxspec.pipeline.verifiers import parse_verifier

    for name in arguments.verifiers:  # checked before anything is loaded
        parse_verifier(name)
    bundle = token_by_token(load_bundle(arguments.checkpoint or CLASSES))
    folder = find_folder(arguments.checkpoint or CLASSES)
    own = folder / "classifier"
    if not own.is_dir():  # of the same images, if it fits
        own = find_folder(CLASSES) / "classifier"
    chosen = arguments.classifier or own
    classifier = load_checkpoint(chosen, "classifier")
    if classifier.metadata.get("class_names") != bundle.class_names or (
        classifier.config.image_size != bundle.tokenizer.config.image_size
    ):
        raise ConfigError(
            f"the classifier '{chosen}' was trained on other images than bundle "
            f"'{bundle.name}'; train one with `jaxspec train classifier`, and name it "
            "with --classifier"
        )
    extract = classifier_features(classifier)
    loaded = load_drafter(arguments.drafter, bundle)
    tree = loaded.tree(arguments.tree)
    heldout = read_heldout(_source(arguments, bundle), extract, arguments.num)
    classes = spread_classes(len(bundle.class_names), arguments.num)
    prompts = Prompts.from_classes(classes)
    settings = GenerationConfig(
        batch_size=arguments.batch, cfg_scale=arguments.cfg_scale
    )
    total = arguments.num * len(arguments.seeds) * (1 + len(arguments.verifiers))
    with tqdm(total=total, desc="generating", unit="image") as bar:
        result = measure_quality(
            bundle,
            prompts,
            settings,
            arguments.verifiers,
            tree,
            heldout,
            extract,
            seeds=arguments.seeds,
            loaded=loaded,
            progress=bar.update,
        )
    options = {
        "checkpoint": [arguments.checkpoint] if arguments.checkpoint else [],
        "classifier": [arguments.classifier] if arguments.classifier else [],
        "data": [arguments.data],
        "split": [arguments.split],
        "verifiers": arguments.verifiers,
        "seeds": arguments.seeds,
        "cfg-scale": [f"{arguments.cfg_scale:g}"],
        "tree": [arguments.tree],
        "drafter": [arguments.drafter],
        "num": [arguments.num],
        "batch": [arguments.batch],
        "out": [arguments.out],
    }
    result = {"command": command_line("eval images", options), **result}
    write_file(arguments.out + ".json", json_bytes(result))
    text = quality_markdown(result)
    write_file(arguments.out + ".md", with_plot(text, arguments.out).encode())
    write_file(arguments.out + ".png", png_bytes(quality_plot(result)))
    print(text)
