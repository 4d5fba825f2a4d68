"""Commands `jaxspec convert` and `jaxspec export`."""

import argparse

from jaxspec.cli.help import rare

FAMILIES = (
    "llamagen, llamagen-hf, vq-llamagen, vq-janus, vq-taming, t5, llama, qwen2, qwen3, "
    "chameleon, emu3, emu3-original, janus, janus-original, dream, llada, eagle1, "
    "eagle3, medusa, hydra, dflash, var, vq-var, mar, kl, flextok, vq-maskgit, vq-titok"
)


def add_parser(commands) -> None:
    """Adds the parsers of both commands."""
    _add_convert(commands)
    _add_export(commands)


def _add_convert(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert PyTorch weights to a checkpoint",
        description="Reads safetensors, GGUF and PyTorch's zip files without running "
        "code from them, recognizes the model, and writes it into BUNDLE as prior/, "
        "tokenizer/, text_encoder/ or drafter/. Every tensor must map to a parameter.",
        epilog="Example: jaxspec convert t2i_XL_stage1_256.pt llamagen-xl --dtype "
        "bfloat16; then vq_ds16_t2i.pt and google/flan-t5-xl into the same folder",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a file, a folder, or OWNER/NAME[@REVISION][:FILE] on the hub",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder of the result")
    parser.add_argument(
        "--family",
        metavar="NAME",
        help=f"family of the model (default: recognized): {FAMILIES}",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the result (default: as stored, at most float32)",
    )
    parser.add_argument(
        "--target",
        metavar="DIR",
        help=rare(
            "the converted model that a drafter drafts for (default: BUNDLE/prior)"
        ),
    )
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help=rare(
            "set of weights, if a file holds several, such as model and ema (default: "
            "the one that the family's official loader takes)"
        ),
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="setting that cannot be inferred from the files, such as heads=20 or "
        "grid=16; repeatable",
    )
    parser.add_argument(
        "--mesh",
        metavar="DATAxMODEL",
        help=rare(
            "store parameters in the shards of a mesh of this shape, so that each "
            "device can read its shard alone (default: unsharded)"
        ),
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check names and shapes, print the table, write nothing",
    )
    parser.add_argument(
        "--allow-objects",
        action="store_true",
        help=rare(
            "leave out objects in a PyTorch file that are no tensors (their code is "
            "never run)"
        ),
    )
    parser.set_defaults(run=run)


def _add_export(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a checkpoint as safetensors in a released layout",
        description="Writes model.safetensors and config.json, bit-exact in both "
        "directions, in the layout of llamagen, llamagen-hf, eagle1, eagle3 or dflash.",
        epilog="Example: jaxspec export runs/my/checkpoint/prior out --family llamagen",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a part of a bundle, such as DIR/prior"
    )
    parser.add_argument(
        "folder", metavar="DIR", help="folder of the result, created if needed"
    )
    parser.add_argument(
        "--family",
        required=True,
        choices=("llamagen", "llamagen-hf", "eagle1", "eagle3", "dflash"),
    )
    parser.set_defaults(run=run_export)


def run(arguments: argparse.Namespace) -> None:
    """Runs `jaxspec convert`."""
    from contextlib import closing

    from tqdm import tqdm

    from jaxspec.convert.conversion import convert, prepare
    from jaxspec.convert.plan import Conversion

    mesh = make_simulated_mesh(arguments.mesh) if arguments.mesh else None
    options = {
        "family": arguments.family,
        "dtype": arguments.dtype,
        "target": arguments.target,
        "given": read_settings(arguments.set),
        "allow_objects": arguments.allow_objects,
        "weights": arguments.weights,
    }
    if arguments.dry_run:
        for conversion in prepare(arguments.source, arguments.bundle, **options):
            print(format_table(conversion))
        return
    bars: list[tqdm] = []

    def progress(conversion: Conversion):
        for bar in bars:
            bar.close()
        name = f"{conversion.plan.kind} ({conversion.family.name})"
        bar = tqdm(total=conversion.bytes, desc=name, unit="B", unit_scale=True)
        bars.append(bar)
        return bar.update

    try:
        results = convert(
            arguments.source, arguments.bundle, mesh=mesh, progress=progress, **options
        )
    finally:
        for bar in bars:
            with closing(bar):
                pass
    for result in results:
        print(
            f"{result.folder}: {result.family}, {result.tensors:,} tensors, "
            f"{result.parameters:,} parameters, {result.bytes:,} bytes, digest "
            f"{result.digest}"
        )
        for remark in result.remarks:
            print(f"  {remark}")


def make_simulated_mesh(text: str):
    """Makes a mesh of simulated CPU devices that shards parameters like `text`.

    Only the model axis shards parameters, so the data axis has size 1.

    Args:
      text: shape of the mesh, DATAxMODEL.

    Raises:
      ConfigError: the text is no shape, or there are too few devices.
    """
    import jax

    from jaxspec.sharding import make_mesh, read_mesh

    _, model = read_mesh(text)
    try:  # fails once a device has been used
        jax.config.update("jax_num_cpu_devices", model)
    except RuntimeError:
        pass
    return make_mesh(1, model, jax.devices("cpu"))


def run_export(arguments: argparse.Namespace) -> None:
    """Runs `jaxspec export`."""
    from tqdm import tqdm

    from jaxspec.convert.export import export

    bars: list[tqdm] = []

    def begin(total: int):
        bars.append(tqdm(total=total, desc="export", unit="B", unit_scale=True))
        return bars[0].update

    try:
        file = export(arguments.checkpoint, arguments.folder, arguments.family, begin)
    finally:
        for bar in bars:
            bar.close()
    print(f"wrote {file}")


def read_settings(pairs: list[str]) -> dict[str, object]:
    """Parses `KEY=VALUE` pairs: numbers, lists (1,2,3), true and false, or words.

    Raises:
      ConfigError: a pair does not have this form.
    """
    from jaxspec.errors import ConfigError

    def parse(text: str) -> object:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
        return {"true": True, "false": False}.get(text.lower(), text)

    result: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or not value:
            raise ConfigError(f"--set {pair!r} is not of the form KEY=VALUE")
        values = [parse(v) for v in value.split(",")]
        result[key] = tuple(values) if len(values) > 1 else values[0]
    return result


def format_table(conversion) -> str:
    """Formats a table of parameters with their tensors and transforms."""
    from jaxspec.convert.summary import remarks

    lines = [
        f"# {conversion.source.name}: {conversion.family.name} -> "
        f"{conversion.plan.kind}, {conversion.parameters:,} parameters, "
        f"{conversion.bytes:,} bytes",
        *(f"# {remark}" for remark in remarks(conversion)),
        "| parameter | shape | dtype | tensors | transform |",
        "|---|---|---|---|---|",
    ]
    for entry in conversion.entries:
        shape = " x ".join(map(str, entry.shape))
        names = " + ".join(entry.tensors)
        cells = (entry.path, shape, entry.dtype, names, entry.transform)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
