"""`jaxspec generate --prompts FILE --out-dir DIR`: an image for each line."""

import argparse
import sys
from pathlib import Path

from jaxspec.cli.options import chosen_mesh, print_cut_captions, sampling_settings


def run_many(arguments: argparse.Namespace) -> None:
    """Generates the images that do not exist yet."""
    from jaxspec.errors import ConfigError
    from jaxspec.io.text_files import read_lines

    numbered = read_lines(arguments.prompts)
    for name in (
        "num",
        "out",
        "report",
        "classes",
        "prompt",
        "cache_stages",
        "compare",
    ):
        value = getattr(arguments, name)
        if value is not None and value is not False:
            raise ConfigError(
                f"--{name.replace('_', '-')} does not go with --prompts, which writes "
                "an image for each line of a file into DIR, and a report"
            )
    if arguments.watermark and arguments.processes > 1:
        raise ConfigError("--watermark marks the images of one process")
    if (arguments.processes, arguments.process) != (1, 0) and not arguments.coordinator:
        raise ConfigError("several processes need --coordinator, where process 0 runs")
    if arguments.coordinator:
        from jaxspec.sharding.processes import join, run_supervised

        run_supervised()
        join(arguments.coordinator, arguments.processes, arguments.process)
    sampling_settings(arguments)  # computes, so after `join`; raises before loading
    from jaxspec.sharding.processes import together

    with together():
        _generate(arguments, numbered)


def _generate(arguments: argparse.Namespace, numbered: dict[int, str]) -> None:
    """Generates images for lines, by their numbers in the file."""
    import jax
    from tqdm import tqdm

    from jaxspec.cli.generate import watermark_of
    from jaxspec.cli.models import given_settings, load_models, print_start, with_tree
    from jaxspec.pipeline.image_folder import generate_image_folder
    from jaxspec.pipeline.prompts import Prompts
    from jaxspec.pipeline.settings import resolve_config
    from jaxspec.sharding import make_mesh

    is_first, folder = jax.process_index() == 0, Path(arguments.out_dir)
    mesh = chosen_mesh(arguments)
    if mesh is None and jax.process_count() > 1:
        mesh = make_mesh()
    models = load_models(arguments, mesh, quiet=not is_first)
    bundle = models.bundle
    groups = mesh.shape["data"] if mesh else 1
    config = resolve_config(bundle, given_settings(arguments, groups))
    example = Prompts.example(bundle.prior.config)
    models = with_tree(models, example, config, count=len(numbered))
    bundle, loaded, tree, _ = models
    if is_first:
        print_start(models, config, len(numbered))
    cut = {}
    if bundle.prior.config.condition == "caption":
        named = {f"line {i}": line for i, line in numbered.items()}
        cut = print_cut_captions(bundle, named, quiet=not is_first)
    mark = watermark_of(bundle, arguments.watermark) if arguments.watermark else None
    with tqdm(desc="generating", unit="image", disable=not is_first) as bar:
        bar.set_postfix_str("compiling")

        def advance(images: int, total: int) -> None:
            bar.total = total
            bar.set_postfix_str("", refresh=False)
            bar.update(images)

        report = generate_image_folder(
            bundle,
            list(numbered.values()),
            folder,
            config,
            tree,
            loaded=loaded,
            dtype=arguments.dtype,
            watermark=mark,
            progress=advance,
            notes={"cut_captions": cut},
        )
    if not is_first:
        return
    if report is None:
        print(f"all {len(numbered)} images are in {folder}")
        return
    print(
        f"{report['images']} images in {report['seconds']:.1f} s, compilation "
        f"included: {report['tokens_per_call']:.2f} tokens per call, "
        f"{100 * report['rows_in_use']:.0f} % of rows in use"
    )
    if report["acceptance_note"]:
        print(f"note: {report['acceptance_note']}", file=sys.stderr)
    print(f"wrote {folder}")
