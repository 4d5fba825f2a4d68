"""`jaxspec demo`: a local web page that shows images while they are generated."""

import argparse
import sys

from jaxspec.cli.compile_cache import add_compile_cache
from jaxspec.cli.options import add_checkpoint

PORT = 8421


def add_parser(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "demo",
        help="play with a model in the browser",
        description="Serves one web page, for this machine alone: prompt, seed, "
        "guidance, drafter on or off. Images appear while they are generated, with the "
        "tokens that each target call accepted. Needs the package aiohttp.",
        epilog="Example: jaxspec demo --checkpoint runs/photos",
    )
    add_checkpoint(parser, "emoji64")
    parser.add_argument(
        "--drafter",
        default="own",
        metavar="NAME",
        help="see `jaxspec generate --help` (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=PORT,
        metavar="N",
        help="port of the page; 0 takes any free one (default: %(default)s)",
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="do not open the page"
    )
    add_compile_cache(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command until it is interrupted.

    Raises:
      CheckpointError: the checkpoint cannot be used.
      ConfigError: the model makes no images, the port cannot be used, or the package
        aiohttp is not installed.
    """
    import webbrowser

    from jaxspec.demo.server import HOST, check_package, free_socket, serve
    from jaxspec.errors import ConfigError
    from jaxspec.pipeline.embedded import CAPTIONS
    from jaxspec.pipeline.pipeline import load_pipeline

    check_package()
    drafter = None if arguments.drafter == "none" else arguments.drafter
    pipe = load_pipeline(arguments.checkpoint or CAPTIONS, drafter=drafter)
    if pipe.bundle.image_tokenizer is None:
        raise ConfigError(
            f"bundle '{pipe.bundle.name}' makes text; the page is for images"
        )
    with free_socket(arguments.port) as listener:
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        print(f"page        {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        if not arguments.no_browser:
            webbrowser.open(address)
        serve(pipe, listener)
