"""`jaxspec generate` with a model of text: answers, or continued texts."""

import argparse
import sys


def run_text(arguments: argparse.Namespace, models, config) -> None:
    """Prints what the model answers to each prompt, or how it continues it.

    Args:
      arguments: parsed options.
      models: a `Models` whose bundle generates text.
      config: a `GenerationConfig`.

    Raises:
      ConfigError: there is no prompt, or an option is for images.
    """
    from jaxspec.cli.models import print_start, with_tree
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.pipeline import PipelineOutput
    from jaxspec.pipeline.prompt_inputs import resolve_prompts
    from jaxspec.pipeline.report import generation_report, generation_table, json_bytes

    _check_options(arguments)
    prompts = resolve_prompts(
        models.bundle,
        None,
        arguments.prompt,
        chat=False if arguments.no_chat else None,
        names=("", "texts: give --prompt"),
    )
    models = with_tree(models, prompts, config, drafting=arguments.compare)
    bundle, loaded, tree, _ = models
    print_start(models, config, len(prompts), prompts.length)
    from jaxspec.cli.generate import generate_all

    result, plain = generate_all(models, prompts, config, arguments.compare)
    report = generation_report(bundle, prompts, config, tree, result, plain, loaded)
    texts = PipelineOutput(bundle, result).texts
    report["texts"] = [
        text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        for text in texts
    ]
    if arguments.report:
        write_file(arguments.report, json_bytes(report))
    print(generation_table(report, heading=False), file=sys.stderr)
    for text in report["texts"]:
        print(text)


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuses options of images."""
    from jaxspec.errors import ConfigError

    for name in ("classes", "continue_image", "given_num", "given_out"):
        if getattr(arguments, name):
            option = name.removeprefix("given_").removesuffix("_image")
            raise ConfigError(f"--{option} is for images, and this model makes text")
