"""`jaxspec generate --prompts FILE --out-dir DIR`: an image for every line."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from jaxspec.cli.options import (
    chosen_mesh,
    sampling_settings,
    tell_cut_captions,
    tell_what_stays_whole,
)

REPORT = "report.json"
SETTINGS = "settings.json"
LINES = "prompts.txt"


def run_many(arguments: argparse.Namespace) -> None:
    """Draws what is not there yet."""
    from jaxspec.errors import ConfigError
    from jaxspec.io.text_files import read_lines

    lines = read_lines(arguments.prompts)
    folder = Path(arguments.out_dir)
    for name in ("num", "out", "report", "classes", "prompt", "cache_stages"):
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"--{name} does not go with --prompts, which draws the lines of a file "
                "into DIR, its report included"
            )
    if (arguments.processes, arguments.process) != (1, 0) and not arguments.coordinator:
        raise ConfigError("several processes need --coordinator, where process 0 runs")
    if arguments.coordinator:
        from jaxspec.sharding.processes import join, run_supervised

        run_supervised()
        join(arguments.coordinator, arguments.processes, arguments.process)
    sampling_settings(arguments)  # computes, so behind `join`; before what is loaded
    import jax

    from jaxspec.sharding.processes import together

    with together():
        _draw(arguments, lines, folder, first=jax.process_index() == 0)


def _draw(
    arguments: argparse.Namespace, numbered: dict[int, str], folder: Path, first: bool
) -> None:
    """Draws `numbered`, what to draw by the number of its line in the file."""
    import jax
    import numpy as np
    from tqdm import tqdm

    from jaxspec.checkpoint import digest_of
    from jaxspec.errors import ConfigError
    from jaxspec.io.images import png_bytes
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.bundle import load_bundle
    from jaxspec.pipeline.config import GenerationConfig
    from jaxspec.pipeline.continuous import generate_continuously
    from jaxspec.pipeline.decoding import decode_images
    from jaxspec.pipeline.drafters import load_drafter
    from jaxspec.pipeline.engine import bundle_for
    from jaxspec.pipeline.report import json_bytes
    from jaxspec.pipeline.verifiers import parse_verifier, verifier_spec
    from jaxspec.sharding import make_mesh
    from jaxspec.sharding.device import device_name
    from jaxspec.sharding.processes import (
        any_process,
        check_same_arguments,
        sum_of_processes,
    )
    from jaxspec.speculative.trees.parsing import default_batch
    from jaxspec.speculative.trees.tree import Tree

    mesh = chosen_mesh(arguments)
    if mesh is None and jax.process_count() > 1:
        mesh = make_mesh()
    dtype = arguments.dtype if arguments.dtype != "float32" else None
    bundle = load_bundle(
        arguments.checkpoint, dtype=dtype, mesh=mesh, int8=arguments.int8
    )
    if mesh is not None and first:
        tell_what_stays_whole(bundle)
    lines = list(numbered.values())
    prompts = _prompts_of(bundle, lines)
    cut = {}
    if bundle.prior.config.condition == "caption":
        named = {f"line {i}": line for i, line in numbered.items()}
        cut = tell_cut_captions(bundle, named, quiet=not first)
    tree, loaded = Tree.root(), None
    if arguments.drafter != "none":
        loaded = load_drafter(arguments.drafter, bundle)
        tree = loaded.tree(arguments.tree)
    groups = mesh.shape["data"] if mesh is not None else 1
    rows = groups * default_batch() if arguments.batch is None else arguments.batch
    config = GenerationConfig(
        **sampling_settings(arguments),
        attention=arguments.attention,
        batch_size=rows,
        verifier=parse_verifier(arguments.verifier),
    )
    # What an image depends on. Drafter and tree are not part of it: of verifiers that
    # do not promise plain decoding's tokens, they are.
    same: dict[str, Any] = {
        "prior": digest_of(bundle_for(bundle, loaded).prior),
        "tokenizer": digest_of(bundle.tokenizer),
        "text_encoder": _text_encoder_of(bundle),
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "cfg_scale": arguments.cfg_scale,
        "cfg_interval": arguments.cfg_interval,
        "dtype": arguments.dtype,
        "int8": arguments.int8,
        "verifier": verifier_spec(config.verifier),
    }
    if not (config.verifier.lossless and config.verifier.token_exact):
        same |= {"drafter": loaded.name if loaded else "none", "tree": repr(tree)}
    check_same_arguments({**same, "seed": arguments.seed, "lines": lines})
    _keep_settings(folder, same, first)
    _keep_lines(folder, lines, first)

    files = [folder / f"{i:06d}_seed{arguments.seed}.png" for i in range(len(lines))]
    there = any_process(np.array([file.is_file() for file in files]))
    pending = np.flatnonzero(~there).tolist()
    if not pending:
        if first:
            print(f"all {len(lines)} images are in {folder}")
        return
    began, drawn, tokens, calls, rounds = time.perf_counter(), 0, 0, 0, 0
    with tqdm(
        total=len(pending), desc="drawing", unit="image", disable=not first
    ) as bar:
        bar.set_postfix_str("compiling")
        segments = generate_continuously(
            bundle, config, tree, pending, prompts, loaded=loaded
        )
        for segment in segments:
            bar.set_postfix_str("", refresh=False)
            finished = segment.finished
            if finished:
                image_tokens = np.stack([request.tokens for request in finished])
                images = decode_images(bundle, image_tokens, batch_size=8)
                for request, image in zip(finished, images, strict=True):
                    write_file(files[request.id], png_bytes(image))
            drawn += len(finished)
            tokens += sum(request.tokens.size for request in finished)
            calls += sum(request.calls for request in finished)
            rounds += segment.rounds
            bar.update(len(finished))
    seconds = time.perf_counter() - began
    drawn, tokens, calls = sum_of_processes(np.array([drawn, tokens, calls])).tolist()
    if drawn != len(pending):
        raise ConfigError(f"{len(pending) - drawn} images were not drawn")
    report = {
        "images": drawn,
        "there_before": len(lines) - drawn,
        "tokens": tokens,
        "target_calls": calls,
        "tokens_per_call": tokens / calls,
        "rounds": rounds,
        "rows": rows,
        "rows_in_use": (calls - drawn) / max(rounds * rows, 1),
        "seconds": seconds,
        "images_per_second": drawn / seconds,
        "drafter": loaded.name if loaded else "none",
        "tree": {"nodes": tree.size, "depth": tree.depth},
        "lossless": config.verifier.lossless,
        "seed": arguments.seed,
        **same,
        "mesh": dict(mesh.shape) if mesh is not None else None,
        "processes": jax.process_count(),
        "device": device_name(),
        "cut_captions": cut,
    }
    if first:
        write_file(folder / REPORT, json_bytes(report))
        print(
            f"{drawn} images in {seconds:.1f} s, compilation included: "
            f"{report['tokens_per_call']:.2f} tokens per call, "
            f"{100 * report['rows_in_use']:.0f} % of rows in use"
        )
        print(f"wrote {folder}")


def _prompts_of(bundle: Any, lines: list[str]) -> Any:
    """Function that returns the prompts of some lines, by their numbers."""
    import jax
    import numpy as np

    from jaxspec.errors import ConfigError
    from jaxspec.pipeline.bundle import resolve_classes
    from jaxspec.pipeline.captions import read_captions

    if bundle.prior.config.condition == "none":
        raise ConfigError(f"bundle '{bundle.name}' makes text; --prompts draws images")
    if bundle.prior.config.condition == "class":
        ids = np.array(resolve_classes(bundle, lines), np.int32)
        return lambda numbers: ids[list(numbers)]
    held: dict[str, Any] = {}

    def told(numbers):
        wanted = dict.fromkeys(lines[n] for n in numbers)
        for text in [text for text in held if text not in wanted]:
            del held[text]
        new = [text for text in wanted if text not in held]
        if new:  # the encoder is loaded for all of them, and let go again
            found = read_captions(bundle.text_encoder, new).features
            for i, text in enumerate(new):
                held[text] = jax.tree.map(lambda x: x[i], found)  # noqa: B023
        return jax.tree.map(lambda *x: np.stack(x), *(held[lines[n]] for n in numbers))

    return told


def _text_encoder_of(bundle: Any) -> str | None:
    from jaxspec.checkpoint import read_config

    if bundle.text_encoder is None:
        return None
    return read_config(bundle.text_encoder).metadata.get("digest", "")


def _keep_lines(folder: Path, lines: list[str], first: bool) -> None:
    """Refuses a file whose lines are no longer those that were drawn.

    Raises:
      ConfigError: says which.
    """
    from jaxspec.errors import ConfigError
    from jaxspec.io.text_files import read_text, split_lines
    from jaxspec.io.writing import write_file

    file = folder / LINES
    drawn = split_lines(read_text(file)) if file.is_file() else []
    for i, (old, new) in enumerate(zip(drawn, lines, strict=False)):
        if old != new:
            raise ConfigError(
                f"'{folder}' holds {old!r} as image {i}, the file now says {new!r}; "
                "add lines at the end, or choose another --out-dir"
            )
    if first and len(lines) > len(drawn):
        write_file(file, "".join(f"{line}\n" for line in lines).encode())


def _keep_settings(folder: Path, same: dict[str, Any], first: bool) -> None:
    """Refuses a folder of images that were drawn in another way.

    Raises:
      ConfigError: says what differs.
    """
    from jaxspec.errors import ConfigError
    from jaxspec.io.writing import write_file
    from jaxspec.pipeline.report import json_bytes

    file = folder / SETTINGS
    if file.is_file():
        try:
            known = dict(json.loads(file.read_bytes()))
        except (ValueError, TypeError):
            raise ConfigError(
                f"'{file}' is damaged; choose another --out-dir"
            ) from None
        if differs := sorted(k for k in same if known.get(k) != same[k]):
            raise ConfigError(
                f"'{folder}' holds images drawn with another {', '.join(differs)}; "
                "choose another --out-dir"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    if first:
        write_file(file, json_bytes(same))
