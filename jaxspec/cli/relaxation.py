"""Command `jaxspec eval relaxation`: acceptance and distortion of verifiers."""

import argparse

from jaxspec.cli.options import add_checkpoint, check_scales
from jaxspec.cli.reports import (
    add_numbers,
    add_out,
    check_numbers,
    check_out,
    command_line,
    write_report,
)

SUFFIXES = (".json", ".md", ".png")
VERIFIERS = (
    "rejection",
    "coupled",
    "lantern:k=10,delta=0.02",
    "lantern:k=10,delta=0.1",
    "lantern:k=10,lam=1.5",
    "lantern:k=10,lam=3",
    "coupled-relaxed:k=10,budget=0.1",
    "coupled-relaxed:k=10,budget=0.5",
)


def add_relaxation(parts) -> None:
    """Adds the parser of the command."""
    parser = parts.add_parser(
        "relaxation",
        help="acceptance and distortion of verifiers on given distributions",
        description="Compares verifiers at positions with known distributions of "
        "target and drafter: acceptance, tokens per call, total variation and "
        "Wasserstein distance of the output from the target, entropy. Without --p and "
        "--q it takes the distributions of a bundle's target and drafter in generated "
        "images, or, with --codebook alone, synthetic ones. Writes numbers, a table "
        "and a plot of distortion over acceptance.",
        epilog="Examples: jaxspec eval relaxation --out relaxation; jaxspec eval "
        "relaxation --codebook codebook.npy --p p.npy --q q.npy --verifiers rejection "
        "lantern:k=10,delta=0.1 lantern:k=10,lam=2 coupled-relaxed:k=10,budget=0.1 "
        "--out relaxation",
    )
    parser.add_argument(
        "--codebook",
        metavar="FILE.npy",
        help="codebook entries [V, C] (default: those of the bundle's tokenizer)",
    )
    for name, owner in (("p", "target"), ("q", "drafter")):
        parser.add_argument(
            f"--{name}",
            metavar="FILE.npy",
            help=f"distributions [B, V] of the {owner}, after guidance, temperature "
            "and filters: probabilities, or log-probabilities",
        )
    add_checkpoint(parser)
    parser.add_argument(
        "--verifiers",
        nargs="+",
        default=list(VERIFIERS),
        metavar="VERIFIER",
        help="verifiers; see `jaxspec generate --help` (default: "
        + " ".join(VERIFIERS)
        + ")",
    )
    parser.add_argument(
        "--tree",
        default="chain-4",
        help="static draft tree; see `jaxspec generate --help` (default: %(default)s)",
    )
    parser.add_argument(
        "--cfg-scale",
        type=float,
        default=2.0,
        metavar="S",
        help="CFG scale of the bundle's images (default: 2)",
    )
    add_numbers(
        parser,
        positions=(8, "positions, one in each generated image"),
        drafts=(4096, "sampled drafts of several children, a power of 2"),
        rounds=(1024, "simulated rounds at each position"),
        seed=(0, "seed of images, drafts and rounds"),
    )
    add_out(parser, *SUFFIXES)
    parser.set_defaults(run=run_relaxation)


def run_relaxation(arguments: argparse.Namespace) -> None:
    """Runs `jaxspec eval relaxation`."""
    from jaxspec.errors import ConfigError

    check_numbers(arguments, "positions", "drafts", rounds=2, seed=0)
    if arguments.drafts.bit_count() != 1:
        raise ConfigError(f"--drafts {arguments.drafts} must be a power of 2")
    check_out(arguments.out, *SUFFIXES)
    check_scales(arguments.cfg_scale)

    from jaxspec.evaluate.relaxation.distributions import load_distributions
    from jaxspec.evaluate.relaxation.report import comparison_plot, comparison_report
    from jaxspec.evaluate.relaxation.run import check_options, run_comparison

    check_options(arguments.verifiers, arguments.tree)
    files = {name: getattr(arguments, name) for name in ("codebook", "p", "q")}
    distributions = load_distributions(
        **files,
        checkpoint=arguments.checkpoint,
        positions=arguments.positions,
        cfg_scale=arguments.cfg_scale,
        seed=arguments.seed,
    )
    result = run_comparison(
        distributions,
        arguments.verifiers,
        tree=arguments.tree,
        drafts=arguments.drafts,
        rounds=arguments.rounds,
        seed=arguments.seed,
    )
    named = {**files, "checkpoint": arguments.checkpoint}
    options = {
        **{name: [value] if value else [] for name, value in named.items()},
        "verifiers": arguments.verifiers,
        "tree": [arguments.tree],
        "cfg-scale": [f"{arguments.cfg_scale:g}"],
        "positions": [arguments.positions],
        "drafts": [arguments.drafts],
        "rounds": [arguments.rounds],
        "seed": [arguments.seed],
        "out": [arguments.out],
    }
    command = command_line("eval relaxation", options)
    write_report(
        arguments.out, command, result, comparison_report, plot=comparison_plot
    )
