"""Requests of the page, and the events of a generation that answer them."""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jaxspec.config.orders import cells_of
from jaxspec.core.noise import seed_key
from jaxspec.core.result import present
from jaxspec.errors import ConfigError, JaxspecError
from jaxspec.pipeline.pipeline import Pipeline
from jaxspec.pipeline.settings import resolve_config
from jaxspec.speculative.trees.tree import Tree

MOST_IMAGES, MOST_LETTERS, MOST_EXAMPLES = 9, 500, 9


@dataclass(frozen=True)
class DrawRequest:
    """Images that the page asks for.

    Attributes:
      prompt: caption, or name or number of a class.
      count: number of images.
      seed: seed of the images.
      cfg_scale: scale of classifier-free guidance.
      draft: whether to draft; False decodes plainly.
    """

    prompt: str
    count: int
    seed: int
    cfg_scale: float
    draft: bool


def read_request(query: Mapping[str, str], pipe: Pipeline) -> DrawRequest:
    """Reads the parameters of a request.

    Args:
      query: `prompt`, `count`, `seed`, `cfg` and `draft`, all but the first optional.
      pipe: pipeline that will draw.

    Raises:
      ConfigError: a parameter is missing or impossible.
    """
    prompt = query.get("prompt", "").strip()
    if not prompt:
        raise ConfigError("the prompt is empty; describe the image")
    if len(prompt) > MOST_LETTERS:
        raise ConfigError(
            f"the prompt has {len(prompt)} letters; {MOST_LETTERS} are the most"
        )
    count = _whole(query, "count", 4)
    if not 1 <= count <= MOST_IMAGES:
        raise ConfigError(f"{count} images; choose 1 to {MOST_IMAGES}")
    seed = _whole(query, "seed", 0)
    seed_key(seed)  # refuses impossible ones
    try:
        cfg_scale = float(query.get("cfg") or resolve_config(pipe.bundle, {}).cfg_scale)
    except ValueError:
        raise ConfigError(f"cfg={query['cfg']!r} is no number") from None
    resolve_config(pipe.bundle, {"cfg_scale": cfg_scale, "seed": seed})
    draft = query.get("draft", "1") != "0" and pipe.loaded is not None
    return DrawRequest(prompt, count, seed, cfg_scale, draft)


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(query.get(name) or default)
    except ValueError:
        raise ConfigError(f"{name}={query[name]!r} is no whole number") from None


def events(pipe: Pipeline, request: DrawRequest) -> Iterator[dict[str, Any]]:
    """Generates images, and yields an event for every round.

    Args:
      pipe: pipeline that draws.
      request: prompt and settings.

    Yields:
      A dict with the key "kind": first a "start", then a "round" for each target call,
      with the number of tokens of each image and all images side by side, and an
      "end"; an "error" if something cannot be drawn.
    """
    try:
        yield from _events(pipe, request)
    except JaxspecError as error:
        yield {"kind": "error", "message": str(error)}


def _cells(config: Any) -> list[int] | None:
    """Cell of each token, by rows; None if tokens have no place in an image."""
    grid = getattr(config, "grid", None)
    if grid is None or grid**2 != config.length:
        return None
    return list(cells_of(config.order, grid))


def _events(pipe: Pipeline, request: DrawRequest) -> Iterator[dict[str, Any]]:
    tree = Tree.root()
    if request.draft:
        assert pipe.loaded is not None  # read_request
        tree = pipe.loaded.tree()
    captioned = pipe.bundle.prior.config.condition == "caption"
    words = [request.prompt] * request.count
    yield {
        "kind": "start",
        "count": request.count,
        "cells": _cells(pipe.bundle.tokenizer.config),
        "drafted": tree.size - 1,
        "target": pipe.bundle.name,
        "drafter": pipe.loaded.name if request.draft and pipe.loaded else None,
    }
    preview = None
    for preview in pipe.stream(
        None if captioned else words,
        words if captioned else None,
        tree=tree,
        rounds=1,
        seed=request.seed,
        cfg_scale=request.cfg_scale,
        batch_size=request.count,
    ):
        yield {
            "kind": "round",
            "tokens": present(preview.tokens).sum(axis=1).tolist(),
            "seconds": preview.seconds,
            "images": _data_url(preview.images),
        }
    assert preview is not None  # a generation has at least one round
    calls = np.asarray(preview.result.stats.calls)[: request.count]
    tokens = int(present(preview.tokens).sum())
    yield {
        "kind": "end",
        "tokens": tokens,
        "calls": int(calls.sum()),
        "tokens_per_call": tokens / int(calls.sum()),
        "seconds": preview.seconds,
    }


def _data_url(images: np.ndarray) -> str:
    """A PNG of images uint8 [B, h, w, 3] side by side, as an address."""
    out = io.BytesIO()
    Image.fromarray(np.concatenate(list(images), axis=1)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def description(pipe: Pipeline) -> dict[str, Any]:
    """Description of the models, for the page."""
    prior = pipe.bundle.prior.config
    captioned = prior.condition == "caption"
    names = pipe.bundle.class_names
    return {
        "name": pipe.bundle.name,
        "captioned": captioned,
        "classes": [] if captioned else names,
        "styles": pipe.bundle.styles,
        "examples": (pipe.bundle.examples if captioned else names)[:MOST_EXAMPLES],
        "drafter": pipe.loaded.name if pipe.loaded else None,
        "cfg": resolve_config(pipe.bundle, {}).cfg_scale,
        "most_images": MOST_IMAGES,
    }
