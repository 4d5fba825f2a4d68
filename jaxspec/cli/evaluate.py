"""`jaxspec eval`: quality of a bundle's models on held-out data."""

import argparse

from jaxspec.cli.options import add_checkpoint, add_data


def add_parser(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "eval",
        help="measure a tokenizer or a prior on held-out pictures",
        description="Measures a tokenizer (PSNR in dB, share of the codebook in use) "
        "or a prior (nats per code, entropy of its predictions) on a split.",
        epilog="Example: jaxspec eval tokenizer --data fruits360_64 "
        "--manual-dir DIR_OF_FRUITS360",
    )
    parser.add_argument("part", choices=("tokenizer", "prior"))
    add_checkpoint(parser)
    parser.add_argument(
        "--data", required=True, metavar="NAME", help="tfds name of the data set"
    )
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    add_data(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    import tempfile
    from pathlib import Path

    from jaxspec.bundle import load_bundle
    from jaxspec.data.codes import encode_source
    from jaxspec.data.source import ImageSource
    from jaxspec.evaluate.likelihood import likelihood_metrics
    from jaxspec.evaluate.reconstruction import reconstruction_metrics
    from jaxspec.models.tokenizer import Tokenizer
    from jaxspec.models.transformer import Transformer

    bundle = load_bundle(arguments.checkpoint)
    tokenizer = Tokenizer(bundle.tokenizer.config)
    source = ImageSource(
        arguments.data,
        arguments.split,
        tokenizer.config.image_size,
        arguments.data_dir,
        arguments.manual_dir,
    )
    if arguments.part == "tokenizer":
        metrics = reconstruction_metrics(tokenizer, bundle.tokenizer.params, source)
    else:
        with tempfile.TemporaryDirectory() as folder:
            codes = encode_source(
                tokenizer,
                bundle.tokenizer.params,
                source,
                name=arguments.split,
                flips=False,
                cache_dir=Path(folder),
            )
        model = Transformer(bundle.prior.config)
        metrics = likelihood_metrics(model, bundle.prior.params, codes)
    for name, value in metrics.items():
        print(f"{name:12} {value:.4f}")
