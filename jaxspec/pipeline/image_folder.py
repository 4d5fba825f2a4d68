"""One image for each line of a file, each in a file of its own."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxspec.checkpoint import digest_of, read_config
from jaxspec.config.orders import order_of
from jaxspec.errors import ConfigError
from jaxspec.io.images import png_bytes
from jaxspec.io.text_files import read_text, split_lines
from jaxspec.io.writing import write_file
from jaxspec.mar.generator import MARGenerator
from jaxspec.masked.generator import MaskedGenerator
from jaxspec.pipeline.acceptance import FirstDrafts, acceptance_note
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.continuous import PromptsOf, generate_continuously
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.engine import bundle_for
from jaxspec.pipeline.generators import make_generator, policy_of, schedule_of
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompt_inputs import read_prompts
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.report import json_bytes
from jaxspec.pipeline.verifiers import verifier_spec
from jaxspec.pipeline.watermark import Watermark
from jaxspec.sharding.device import device_name
from jaxspec.sharding.processes import (
    any_process,
    check_same_arguments,
    sum_of_processes,
)
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree

SETTINGS, LINES, REPORT = "settings.json", "prompts.txt", "report.json"


@dataclass
class _Counts:
    """Sums over finished images."""

    images: int = 0
    tokens: int = 0
    calls: int = 0
    rounds: int = 0
    proposed: int = 0
    first_accepted: int = 0


def generate_image_folder(
    bundle: Bundle,
    lines: list[str],
    folder: Path,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    *,
    loaded: LoadedDrafter | None = None,
    dtype: str = "float32",
    watermark: Watermark | None = None,
    progress: Callable[[int, int], object] = lambda images, total: None,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Generates the images of a folder that do not exist yet.

    Image `i` of seed `s` is `{i:06d}_seed{s}.png`. A run that was killed continues
    where it was. With several processes, all call this with the same arguments.

    Args:
      bundle: models.
      lines: class names or numbers, or captions.
      folder: folder of the images.
      config: generation settings.
      tree: shape of the drafts; the root alone for plain decoding.
      loaded: drafter; None for plain decoding.
      dtype: dtype of the parameters, for the record.
      watermark: mark of the images; None for none.
      progress: callback with the number of images that ended since the last call, and
        the number to generate.
      notes: further entries of the report.

    Returns:
      Report, or None if all images existed.

    Raises:
      ConfigError: the folder holds images of other lines or settings, or the
        processes have different arguments.
    """
    is_first = jax.process_index() == 0
    settings = _image_settings(bundle, config, tree, loaded, dtype)
    settings |= {"watermark": None if watermark is None else watermark.digest}
    check_same_arguments({**settings, "seed": config.seed, "lines": lines})
    _check_settings(folder, settings, is_first)
    _check_lines(folder, lines, is_first)
    files = [folder / f"{i:06d}_seed{config.seed}.png" for i in range(len(lines))]
    exists = any_process(np.array([file.is_file() for file in files]))
    pending = np.flatnonzero(~exists).tolist()
    if not pending:
        return None
    began, counts = time.perf_counter(), _Counts()
    prompts = prompts_of(bundle, lines)
    # With features of its own: those of the queue are still in use.
    finished_prompts = prompts_of(bundle, lines)

    def mark(ids: list[int], tokens: np.ndarray) -> np.ndarray:
        if watermark is None:
            return tokens
        values = Prompts(finished_prompts(ids), bundle.prior.config.condition)
        return watermark.mark(bundle_for(bundle, loaded), values, config, tokens)

    segments = generate_continuously(
        bundle, config, tree, pending, prompts, loaded=loaded
    )
    for segment in segments:
        _write_images(bundle, segment.finished, files, mark)
        _add(counts, segment)
        progress(len(segment.finished), len(pending))
    seconds = time.perf_counter() - began
    report = _report(bundle, config, tree, loaded, counts, seconds, len(pending))
    report |= {"there_before": len(lines) - len(pending), **settings, **(notes or {})}
    if is_first:
        write_file(folder / REPORT, json_bytes(report))
    return report


def prompts_of(bundle: Bundle, lines: list[str]) -> PromptsOf:
    """Function that returns the prompts of lines by their numbers.

    Features of captions are kept only as long as they are asked for again.

    Raises:
      ConfigError: the model generates text, or a line is no class of it.
    """
    condition = bundle.prior.config.condition
    if condition == "none":
        raise ConfigError(
            f"bundle '{bundle.name}' generates text; --prompts is for images"
        )
    if condition == "class":
        ids = read_prompts(bundle, lines).values
        return lambda numbers: ids[list(numbers)]
    features: dict[str, Any] = {}

    def caption_features(numbers):
        texts = dict.fromkeys(lines[n] for n in numbers)
        for text in [text for text in features if text not in texts]:
            del features[text]
        new = [text for text in texts if text not in features]
        if new:  # one load of the encoder for all of them
            read = read_prompts(bundle, new).values
            for i, text in enumerate(new):
                features[text] = jax.tree.map(lambda x: x[i], read)  # noqa: B023
        parts = (features[lines[n]] for n in numbers)
        return jax.tree.map(lambda *x: np.stack(x), *parts)

    return caption_features


def _image_settings(bundle, config, tree, loaded, dtype) -> dict[str, Any]:
    """Everything but the seed that an image depends on.

    Drafter and tree are part of it only for verifiers whose tokens differ from those of
    plain decoding.
    """
    encoder = None
    if bundle.text_encoder is not None:
        encoder = read_config(bundle.text_encoder).metadata.get("digest", "")
    settings: dict[str, Any] = {
        "prior": digest_of(bundle_for(bundle, loaded).prior),
        "tokenizer": digest_of(bundle.tokenizer),
        "text_encoder": encoder,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "cfg_scale": config.cfg_scale,
        "cfg_interval": config.cfg_interval,
        "dtype": dtype,
        "int8": bundle.int8,
        "verifier": verifier_spec(config.verifier),
    }
    if (order := order_of(bundle.prior.config)) != "raster":
        settings |= {"order": order}
    generator, _ = make_generator(bundle, config, tree, loaded)
    if isinstance(generator, MaskedGenerator):
        settings |= {"steps": generator.schedule.steps}
        policy = config.policy or policy_of(bundle.prior.config)
        settings |= {"policy": policy if isinstance(policy, str) else repr(policy)}
        if (shape := generator.schedule.shape) != schedule_of(bundle.prior.config):
            settings |= {"schedule": shape}
    if isinstance(generator, MARGenerator):
        chains, which = generator.chains
        head_steps = [chains[which[0]].count, chains[which[-1]].count]
        settings |= {"steps": generator.schedule.steps, "head_steps": head_steps}
        settings |= {"solver": config.solver}
    if not (config.verifier.lossless and config.verifier.token_exact):
        settings |= {"drafter": loaded.name if loaded else "none", "tree": repr(tree)}
    return settings


def _write_images(bundle: Bundle, finished, files: list[Path], mark) -> None:
    """Writes images after `mark(ids, tokens)`."""
    if not finished:
        return
    tokens = np.stack([request.tokens for request in finished])
    tokens = mark([request.id for request in finished], tokens)
    images = decode_images(bundle, tokens, batch_size=8)
    for request, image in zip(finished, images, strict=True):
        write_file(files[request.id], png_bytes(image))


def _add(counts: _Counts, segment) -> None:
    counts.images += len(segment.finished)
    counts.tokens += sum(len(request.tokens) for request in segment.finished)
    counts.calls += sum(request.calls for request in segment.finished)
    counts.proposed += sum(request.proposed for request in segment.finished)
    counts.first_accepted += sum(request.first_accepted for request in segment.finished)
    counts.rounds += segment.rounds


def _report(bundle, config, tree, loaded, counts, seconds, expected) -> dict[str, Any]:
    """Numbers of a run over all processes.

    Raises:
      ConfigError: images are missing.
    """
    sums = np.array(
        [
            counts.images,
            counts.tokens,
            counts.calls,
            counts.proposed,
            counts.first_accepted,
        ]
    )
    images, tokens, calls, proposed, first = sum_of_processes(sums).tolist()
    if images != expected:
        raise ConfigError(f"{expected - images} images were not generated")
    batch, mesh = config.batch_size, bundle.mesh
    # A model that generates token by token reads its prompt in a call of its own.
    in_order = bundle.family == "autoregressive"
    rounds = calls - images * in_order
    drafts = FirstDrafts(rounds, proposed, first)
    return {
        "images": images,
        "tokens": tokens,
        "target_calls": calls,
        "tokens_per_call": tokens / calls,
        "rounds": counts.rounds,
        "rows": batch,
        "rows_in_use": rounds / max(counts.rounds * batch, 1),
        "seconds": seconds,
        "images_per_second": images / seconds,
        "drafter": loaded.name if loaded else "none",
        "tree": {"nodes": tree.size, "depth": tree.depth},
        "lossless": config.verifier.lossless,
        "seed": config.seed,
        "mesh": dict(mesh.shape) if mesh is not None else None,
        "processes": jax.process_count(),
        "device": device_name(),
        "acceptance_note": acceptance_note(loaded, drafts, config),
    }


def _check_lines(folder: Path, lines: list[str], is_first: bool) -> None:
    """Records the lines of a folder, and refuses others than those recorded.

    Raises:
      ConfigError: a line differs.
    """
    file = folder / LINES
    recorded = split_lines(read_text(file)) if file.is_file() else []
    for i, (old, new) in enumerate(zip(recorded, lines, strict=False)):
        if old != new:
            raise ConfigError(
                f"'{folder}' holds {old!r} as image {i}, but this line of the file is "
                f"{new!r}; add lines at the end, or choose another --out-dir"
            )
    if is_first and len(lines) > len(recorded):
        write_file(file, "".join(f"{line}\n" for line in lines).encode())


def _check_settings(folder: Path, settings: dict[str, Any], is_first: bool) -> None:
    """Records the settings of a folder, and refuses others than those recorded.

    Raises:
      ConfigError: a setting differs, or the record is damaged.
    """
    file = folder / SETTINGS
    if file.is_file():
        try:
            recorded = dict(json.loads(file.read_bytes()))
        except (ValueError, TypeError):
            raise ConfigError(
                f"'{file}' is damaged; choose another --out-dir"
            ) from None
        if differs := sorted(k for k in settings if recorded.get(k) != settings[k]):
            raise ConfigError(
                f"'{folder}' holds images generated with another {', '.join(differs)}; "
                "choose another --out-dir"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    if is_first:
        write_file(file, json_bytes(settings))
