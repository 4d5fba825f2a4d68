"""Options that several commands share."""

import argparse
import re
from typing import Any, get_args

from jaxspec.cli.help import rare
from jaxspec.config.orders import Order


def add_checkpoint(parser, default: str = "fruits64") -> None:
    """`--checkpoint`, on a parser or a group of one."""
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="bundle folder with tokenizer/, prior/ and perhaps drafter/ and "
        "text_encoder/, or the name of an embedded one (default: "
        f"{default})",
    )


def add_attention(parser) -> None:
    """`--attention`, on a parser or a group of one."""
    parser.add_argument(
        "--attention",
        choices=("xla", "pallas", "cudnn"),
        default="xla",
        help=rare(
            "over caches: XLA's, a kernel that reads only what is filled (GPU, TPU), "
            "or cuDNN's (NVIDIA, bfloat16) (default: %(default)s)"
        ),
    )


def add_int8(parser) -> None:
    """`--int8`, on a parser or a group of one."""
    parser.add_argument(
        "--int8",
        action="store_true",
        help=rare(
            "hold matrices in 8 bits, one scale a column: other images, of a "
            "slightly different model; speculative and plain ones are the same"
        ),
    )


def add_order(parser) -> None:
    """`--order`, on a parser or a group of one."""
    parser.add_argument(
        "--order",
        choices=get_args(Order),
        help=rare(
            "order of the tokens of an image, of a model trained with the objective "
            "any_order (default: the checkpoint's)"
        ),
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Temperature, filters, guidance."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 is greedy (default: the checkpoint's, else 1)",
    )
    group.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="keep the K likeliest tokens; 0 keeps all (default: the checkpoint's, "
        "else 0)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="keep the likeliest tokens up to mass P; 1 keeps all (default: the "
        "checkpoint's, else 1)",
    )
    group.add_argument(
        "--cfg-scale",
        type=float,
        metavar="S",
        help="classifier-free guidance; 1 is none (default: the checkpoint's, else 2)",
    )
    group.add_argument(
        "--cfg-interval",
        type=int,
        default=-1,
        metavar="STEP",
        help=rare("guide only up to this step; -1 guides always (default: -1)"),
    )
    group.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help=rare(
            "steps of a masked model (default: the checkpoint's, else 12, of MAR 64)"
        ),
    )
    group.add_argument(
        "--policy",
        metavar="NAME",
        help=rare(
            "tokens of a masked model that are known after a step: confidence, "
            "likeliest, margin, entropy, random, halton, raster, coins, threshold, "
            "revision or blocks, some with a number as in threshold-0.9 (default: the "
            "checkpoint's, else confidence, of texts confidence-0)"
        ),
    )
    group.add_argument(
        "--schedule",
        metavar="NAME",
        help=rare(
            "share of masked tokens over these steps: cosine, arccos, linear, square, "
            "cubic or root (default: the checkpoint's, else cosine, of texts linear)"
        ),
    )
    group.add_argument(
        "--head-steps",
        metavar="FIRST[-LAST]",
        help=rare(
            "steps of the chains of MAR's diffusion head, in its first step and in its "
            "last one (default: the checkpoint's, else 100)"
        ),
    )
    group.add_argument(
        "--solver",
        choices=("ancestral", "ddim"),
        help=rare("solver of these chains (default: the checkpoint's, else ancestral)"),
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="same seed, same images (default: %(default)s)",
    )


def sampling_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of `add_sampling`, as `resolve_config` takes them; checked.

    Raises:
      ConfigError: a number is impossible.
    """
    from jaxspec.pipeline.config import GenerationConfig

    found = {
        "seed": arguments.seed,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "cfg_scale": arguments.cfg_scale,
        "cfg_interval": arguments.cfg_interval,
        "steps": arguments.steps,
        "head_steps": _head_steps(arguments.head_steps),
        "solver": arguments.solver,
        "policy": arguments.policy,
        "schedule": arguments.schedule,
    }
    GenerationConfig(**{k: v for k, v in found.items() if v is not None})
    return found


def _head_steps(text: str | None) -> tuple[int, int] | None:
    """Numbers of steps, from "50" or "50-5".

    Raises:
      ConfigError: the text is neither.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    if found is None:
        from jaxspec.errors import ConfigError

        raise ConfigError(f"--head-steps {text!r}; write 50, or 50-5")
    return int(found[1]), int(found[2] or found[1])


def check_scales(*scales: float) -> None:
    """Refuses guidance scales before anything is loaded.

    Raises:
      ConfigError: one is impossible.
    """
    from jaxspec.core.numbers import within

    for scale in scales:
        within("cfg_scale", scale)


def add_data(parser: Any) -> None:
    """Options of image data."""
    parser.add_argument(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="where tfds keeps prepared data (default: %(default)s)",
    )
    parser.add_argument(
        "--manual-dir",
        metavar="DIR",
        help="folder of files that tfds cannot download itself",
    )


def table_stream(*paths: str | None):
    """Stream of tables and notes: stderr if one of the files written is stdout."""
    import sys

    from jaxspec.io.writing import open_descriptor

    taken = any(path and open_descriptor(path) == 1 for path in paths)
    return sys.stderr if taken else sys.stdout


def add_devices(group) -> None:
    """Meshes and processes, on a parser or a group of one."""
    group.add_argument(
        "--mesh",
        metavar="DATAxMODEL",
        help="divide rows along DATA and heads, widths and the vocabulary along MODEL "
        "(default: one device)",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help=rare(
            "of process 0, if there are several; 'auto' on TPU pods and under Slurm"
        ),
    )
    group.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help=rare("how many there are"),
    )
    group.add_argument(
        "--process",
        type=int,
        default=0,
        metavar="I",
        help=rare("which one this is, from 0"),
    )


def chosen_mesh(arguments: argparse.Namespace):
    """The mesh that `add_devices` asks for, or None.

    Raises:
      ConfigError: there are too few devices.
    """
    from jaxspec.sharding import make_mesh, read_mesh

    if not arguments.mesh:
        return None
    return make_mesh(*read_mesh(arguments.mesh))


def print_cut_captions(
    bundle, texts: dict[str, str], quiet: bool = False
) -> dict[str, int]:
    """Prints one line on stderr about captions longer than the model reads.

    They are cut, so that one caption does not keep a long file from being generated.

    Args:
      bundle: models; the text encoder is used.
      texts: captions by a name for messages, such as "line 3".
      quiet: whether to print nothing.

    Returns:
      Tokens of each such caption, by its name.
    """
    import sys

    from jaxspec.pipeline.captions import cut_captions, with_names

    if bundle.text_encoder is None:
        return {}  # `read_captions` refuses that bundle
    names = list(texts)
    captions = with_names(list(texts.values()), bundle.names)
    found = cut_captions(bundle.text_encoder, captions)
    cut = {names[i]: tokens for i, tokens in found.items()}
    if cut and not quiet:
        first = ", ".join(f"{k} ({n} tokens)" for k, n in list(cut.items())[:5])
        rest = f" and {len(cut) - 5} more, listed in the report" if len(cut) > 5 else ""
        print(
            f"{len(cut)} of {len(texts)} captions are cut, since the model reads "
            f"{bundle.prior.config.caption_length} tokens: {first}{rest}",
            file=sys.stderr,
        )
    return cut


def print_replicated(bundle) -> None:
    """Names on stderr the parameters that a mesh's "model" axis does not divide."""
    import sys

    from jaxspec.checkpoint import named_leaves
    from jaxspec.sharding import kept_whole

    shapes = [(path, x.shape) for path, x in named_leaves(bundle.prior.params)]
    if names := kept_whole(shapes, dict(bundle.mesh.shape)):
        rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(
            f"every device holds all of {', '.join(names[:3])}{rest}: they do not "
            f"divide among {bundle.mesh.shape['model']}",
            file=sys.stderr,
        )


def print_low_acceptance(loaded, result, config) -> None:
    """Prints one line on stderr about a drafter that the target seldom accepts."""
    import sys

    from jaxspec.pipeline.acceptance import FirstDrafts, acceptance_note

    if note := acceptance_note(loaded, FirstDrafts.of(result), config):
        print(f"note: {note}", file=sys.stderr)
