"""`jaxspec convert` and `jaxspec export`: weights of other frameworks in, and out."""

import argparse

FAMILIES = (
    "llamagen, llamagen-hf, vq-llamagen, vq-janus, vq-taming, t5, llama, qwen2, qwen3, "
    "chameleon, emu3, emu3-original, janus, janus-original, dream, llada, eagle1, "
    "eagle3, medusa, hydra, dflash"
)


def add_parser(commands) -> None:
    """Registers both commands."""
    parser = commands.add_parser(
        "convert",
        help="turn PyTorch weights into a checkpoint",
        description="Reads .safetensors or PyTorch's zip files without running "
        "anything in them, recognizes the model, and writes it into BUNDLE as prior/, "
        "tokenizer/, text_encoder/ or drafter/. Every tensor must find its place.",
        epilog="Example: jaxspec convert t2i_XL_stage1_256.pt llamagen-xl --dtype "
        "bf16; then vq_ds16_t2i.pt and google/flan-t5-xl into the same folder",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a file, a folder, or OWNER/NAME[@REVISION][:FILE] on the hub",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder of the result")
    parser.add_argument(
        "--family", metavar="NAME", help=f"instead of recognizing it: {FAMILIES}"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bf16", "bfloat16", "float16"),
        help="of the result (default: as stored, at most float32)",
    )
    parser.add_argument(
        "--target",
        metavar="DIR",
        help="the converted model that a drafter drafts for (default: BUNDLE/prior)",
    )
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="which weights, where a file holds several, such as model and ema "
        "(default: those that the family's official loader takes)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what the files do not tell, such as heads=20 or grid=16; repeatable",
    )
    parser.add_argument(
        "--mesh",
        metavar="DATAxMODEL",
        help="store parameters in the parts that the devices of such a mesh hold, so "
        "that each reads its own (default: whole)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything but the numbers, print the table, write nothing",
    )
    parser.add_argument(
        "--allow-objects",
        action="store_true",
        help="let objects in a PyTorch file that are no tensors be left out (their "
        "code is never run)",
    )
    parser.set_defaults(run=run)
    back = commands.add_parser(
        "export",
        help="write a checkpoint as safetensors in a released layout",
        description="Writes model.safetensors and config.json with the names of a "
        "family: llamagen, llamagen-hf, eagle1, eagle3, dflash; bit-exact both ways.",
        epilog="Example: jaxspec export runs/my/checkpoint/prior out --family llamagen",
    )
    back.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a part of a bundle, such as DIR/prior"
    )
    back.add_argument("folder", metavar="DIR", help="made if it is not there")
    back.add_argument(
        "--family",
        required=True,
        choices=("llamagen", "llamagen-hf", "eagle1", "eagle3", "dflash"),
    )
    back.set_defaults(run=run_export)


def run(arguments: argparse.Namespace) -> None:
    """Runs `jaxspec convert`."""
    from contextlib import closing

    from tqdm import tqdm

    from jaxspec.convert.run import convert, prepare
    from jaxspec.convert.understand import Conversion

    mesh = simulated_mesh(arguments.mesh) if arguments.mesh else None
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
            print(table(conversion))
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
    for one in results:
        print(
            f"{one.folder}: {one.family}, {one.tensors:,} tensors, "
            f"{one.parameters:,} parameters, {one.bytes:,} bytes, digest {one.digest}"
        )
        for remark in one.remarks:
            print(f"  {remark}")


def simulated_mesh(text: str):
    """As many devices of this machine's CPU as divide parameters on such a mesh.

    Raises:
      ConfigError: it cannot be.
    """
    import jax

    from jaxspec.sharding import make_mesh, read_mesh

    _, model = read_mesh(text)
    try:  # possible until the first device is used
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
    """`KEY=VALUE` as numbers, lists of numbers (1,2,3) or words.

    Raises:
      ConfigError: one is not of this form.
    """
    from jaxspec.errors import ConfigError

    def number(text: str) -> object:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return text

    result: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or not value:
            raise ConfigError(f"--set {pair!r} is not of the form KEY=VALUE")
        values = [number(v) for v in value.split(",")]
        result[key] = tuple(values) if len(values) > 1 else values[0]
    return result


def table(conversion) -> str:
    """Every parameter, what it is made of, and how."""
    from jaxspec.convert.remarks import remarks

    lines = [
        f"# {conversion.source.name}: {conversion.family.name} -> "
        f"{conversion.plan.kind}, {conversion.parameters:,} parameters, "
        f"{conversion.bytes:,} bytes",
        *(f"# {remark}" for remark in remarks(conversion)),
        "| parameter | shape | dtype | tensors | transform |",
        "|---|---|---|---|---|",
    ]
    for line in conversion.lines:
        shape = " x ".join(map(str, line.shape))
        names = " + ".join(line.theirs)
        cells = (line.ours, shape, line.dtype, names, line.how)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
