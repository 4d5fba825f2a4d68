"""Small programs of every part of the library, for tests under JAX's settings.

A program takes no arguments and makes everything it needs, parameters included, so it
can be traced (`jax.eval_shape`), compiled (`jax.jit`), or run.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import model_of
from jaxspec.config import (
    FlowTokenizerConfig,
    MaskGITTokenizerConfig,
    OneDTokenizerConfig,
    ResidualTokenizerConfig,
    TextEncoderConfig,
    TokenizerConfig,
    ViTConfig,
)
from jaxspec.config import TransformerConfig as Config
from jaxspec.core.continuous_batching import Requests, idle_batch, run_queue
from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.drafters.combine.adaptive import (
    Adaptive,
    ConfidenceCutoff,
    EntropyCutoff,
    LengthController,
)
from jaxspec.drafters.dflash.acceptance_head import AcceptanceHead
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.drafters.ppd.drafter import PPD, PPDConfig
from jaxspec.drafters.training_free.prompt_lookup import PromptLookup
from jaxspec.mar import CoupledMAR, MARGenerator, MARVariables, SpeculativeMAR
from jaxspec.masked import (
    ContextCache,
    MaskedGenerator,
    MaskedVariables,
    MaskingSchedule,
)
from jaxspec.models.classifier.model import Classifier, ClassifierConfig
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.next_scale.model import NextScale
from jaxspec.models.t5.model import TextEncoder
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.prompts import Caption, TokenPrompt
from jaxspec.next_scale import (
    CoupledScales,
    LocalAttention,
    NextScaleVariables,
    TokenSkipping,
    coupled_scales,
    one_model,
)
from jaxspec.nn.quantize import quantized
from jaxspec.pipeline.bundle import cast_floats
from jaxspec.pipeline.verifiers import parse_verifier
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.trees.dynamic import BestFirst, StochasticBeam
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Judge
from jaxspec.speculative.verify.acceptance import optimal_acceptance
from jaxspec.speculative.verify.neighbors import neighbor_table
from jaxspec.testing.table_drafter import TableDrafter
from jaxspec.testing.toy import toy_params, toy_target
from jaxspec.tokenizers.multi_scale.model import MultiScaleTokenizer
from jaxspec.tokenizers.multi_scale.scales import QUANTIZER
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.train import (
    classifier,
    drafter,
    multi_scale_tokenizer,
    next_scale,
    optimizer,
    prior,
    tokenizer,
)
from jaxspec.train.settings import (
    DrafterTrainingConfig,
    PriorTrainingConfig,
    TokenizerTrainingConfig,
    TrainingConfig,
)
from tests.drafters.tiny import (
    BLOCK,
    BUSHY,
    FEATURES,
    TABLES,
    TARGET,
    TREE,
    VOCAB,
    bound_params,
    feature_params,
    table_params,
    target_params,
)
from tests.mar import models as mar
from tests.models.tiny import random_params
from tests.train import tiny_scales

ROWS = 3
PROGRAMS = {}


def program(name, function, *arguments):
    PROGRAMS[name] = partial(function, *arguments)


# The toy target, with filters, guidance, and sequences that end early.
def settings():
    return Sampling.create(
        ROWS,
        temperature=[1.0, 0.0, 0.7],
        cfg_scale=[2.0, 0.5, 1.0],
        top_k=4,
        top_p=0.9,
    )


def prompts():
    return jnp.array([[1, 2, 3, 1], [4, 4, -1, -1], [0, -1, -1, -1]])


def toy(name):
    drafter, tree = TABLES[name] if name else (None, Tree.root())
    engine = Engine(toy_target(VOCAB, 2), 8, drafter, tree)
    return engine.generate(
        Variables(toy_params(VOCAB, 40), table_params(name) if name else None),
        prompts(),
        sampling=settings(),
        keys=batch_keys(3, ROWS),
        stopping=StoppingCriteria.create(
            ROWS, max_new_tokens=[8, 6, 8], stop_tokens=[5, -1, -1]
        ),
    )


program("plain", toy, None)
for name in TABLES:
    program(f"table: {name}", toy, name)


def toy_with(drafter):
    engine = Engine(toy_target(VOCAB, 2), 8, drafter, BUSHY, order=("temperature",))
    params = toy_params(VOCAB, 40)
    sampling = Sampling.create(ROWS, cfg_scale=2.0)
    return engine.generate(
        Variables(params), prompts(), sampling=sampling, keys=batch_keys(3, ROWS)
    )


for name, policy in {
    "cutoff": ConfidenceCutoff(0.3),
    "entropy": EntropyCutoff(1.0),
    "length": LengthController(1, 3, 1),
}.items():
    inner, _ = TABLES["n-grams"]
    program(f"adaptive: {name}", toy_with, Adaptive(inner, policy))


def first_is_large(params, features):
    return features[..., 0]


def verified(text, tree):
    verifier = Judge(first_is_large) if text == "judge" else parse_verifier(text)
    table = jax.random.normal(jax.random.key(1), (3, VOCAB, VOCAB), jnp.float32)
    codebook = np.random.default_rng(1).normal(size=(VOCAB, 2)).astype(np.float32)
    neighbors = neighbor_table(codebook, 2)
    arrays = {"neighbors": neighbors, "embedding": jnp.asarray(codebook)}
    engine = Engine(toy_target(VOCAB), 6, TableDrafter(), tree, verifier)
    return engine.generate(
        Variables(toy_params(VOCAB, 40), {"table": table}, arrays),
        prompts(),
        sampling=settings(),
        keys=batch_keys(3, ROWS),
    )


PATHS = Tree.named("0,1,00,01,10")
VERIFIERS = {
    "coupled": PATHS,
    "rejection": PATHS,
    "rejection:selection=with_replacement": PATHS,
    "rejection:selection=top": PATHS,
    "kseq": PATHS,
    "greedy-set": PATHS,
    "block": Tree.chain(3),
    "lantern:k=2,delta=0.2": PATHS,
    "lantern:k=2,lam=3,residual=optimal": PATHS,
    "coupled-relaxed:k=2,budget=0.3": PATHS,
    "grouped:group=3,distance=9,gap=0.5": PATHS,
    "annealed:delta=1.5": PATHS,
    "entropic:scale=3": PATHS,
    "typical": PATHS,
    "judge": PATHS,
}
for name, tree in VERIFIERS.items():
    program(f"rule: {name}", verified, name, tree)
program("rule: rejection, sampled beam", verified, "rejection", StochasticBeam(2, 2))
program("rule: rejection, best first", verified, "rejection", BestFirst(5, 2))


def stream():
    drafter, tree = TABLES["jacobi, last"]
    engine = Engine(toy_target(VOCAB, 2), 8, drafter, tree, order=("temperature",))
    params = toy_params(VOCAB, 40)
    requests = Requests(
        jnp.arange(ROWS, dtype=jnp.int32),
        prompts(),
        Sampling.create(ROWS, cfg_scale=2.0),
        batch_keys(3, ROWS),
        StoppingCriteria.create(ROWS, max_new_tokens=[8, 6, 3], stop_tokens=[5]),
    )
    first = jax.tree.map(lambda x: x[:2], requests)
    batch = idle_batch(engine, Variables(params), first)
    _, finished = run_queue(engine, Variables(params), batch, requests, True)
    order = jnp.argsort(finished.ids)[-ROWS:]
    return finished.result.tokens[order]


program("stream", stream)


# Drafters that read a transformer's features, or are one.
def run_drafter(
    drafter, tree, drafter_params, model=None, params=None, prompt=None, **options
):
    model = Transformer(TARGET) if model is None else model
    params = target_params() if params is None else params
    prompt = jnp.array([0, 2, 1]) if prompt is None else prompt
    inner = getattr(drafter, "drafter", drafter)
    feature_layers = getattr(inner, "feature_layers", ())
    target = model.as_target(
        cfg=options.pop("guided", True), feature_layers=feature_layers
    )
    engine = Engine(target, 6, drafter, tree, order=("temperature",), **options)
    sampling = Sampling.create(ROWS, temperature=[1.0, 0.0, 0.7], cfg_scale=2.0)
    keys = batch_keys(3, ROWS)
    return engine.generate(
        Variables(params, drafter_params), prompt, sampling=sampling, keys=keys
    )


def featured(name):
    return run_drafter(*FEATURES[name], feature_params(name))


for name in FEATURES:
    program(f"feature: {name}", featured, name)


def block(convert, **options):
    drafter, tree = FEATURES["block"]
    drafter_params = convert(bound_params(drafter))
    params = convert(target_params())
    return run_drafter(drafter, tree, drafter_params, params=params, **options)


def in_bfloat16(params):
    return cast_floats(params, jnp.bfloat16)


program("bfloat16", lambda: block(in_bfloat16, tie_margin=0.0))
program("eight bits", lambda: block(quantized, tie_margin=0.0))
program("in phases", lambda: block(lambda params: params, cache_stages=2))
program(
    "kernels", lambda: block(lambda params: params, model=Transformer(TARGET, "pallas"))
)

CAPTION = replace(
    TARGET, condition="caption", caption_length=3, caption_width=8, extra_tokens=0
)
TEXT = Config(
    vocab_size=17, layers=2, width=32, heads=2, rope="sequence", max_length=32,
    condition="none",
)  # fmt: skip
JANUS = replace(TEXT, head_width=24, tied_head=False)
QWEN = replace(TEXT, kv_heads=1, qk_norm=True, tied_head=True, qkv_bias=True)


def captioned():
    valid = jnp.array([[False, True, True], [True] * 3, [False, False, True]])
    features = jax.random.normal(jax.random.key(2), (ROWS, 3, 8), jnp.float32)
    return run_drafter(
        None,
        Tree.root(),
        None,
        Transformer(CAPTION),
        random_params(CAPTION),
        Caption(features, valid),
    )


def text(config, guided):
    null = jnp.array([[1, 2], [3, -1], [4, -1]])
    prompt = TokenPrompt(prompts(), null) if guided else prompts()
    model, params = Transformer(config), random_params(config)
    tree = Tree.named("0,1,00")
    return run_drafter(PromptLookup(), tree, None, model, params, prompt, guided=guided)


program("captions", captioned)
program("text", text, TEXT, False)
program("text, guided", text, TEXT, True)
program("text, a head of two layers", text, JANUS, True)
program("text, norms and groups", text, QWEN, False)


def masked(shifted, context=None):
    model = MaskedDiffusion(Transformer(TARGET), shifted)
    schedule = MaskingSchedule(TARGET.sequence_length, 3)
    return generate(
        MaskedGenerator(model, schedule, context=context),
        MaskedVariables(target_params()),
        jnp.array([0, 2, 1]),
        sampling=Sampling.create(ROWS, cfg_scale=2.0),
        keys=batch_keys(3, ROWS),
    )


program("masked diffusion", masked, False)
program("masked diffusion, shifted", masked, True)
program("masked diffusion, cached context", masked, False, ContextCache(2, stages=2))


# Images.
IMAGES = TokenizerConfig(
    image_size=8,
    channels=8,
    multipliers=(1, 2),
    groups=4,
    latent_channels=8,
    codebook_size=16,
    code_dim=4,
)


def images():
    return jax.random.uniform(jax.random.key(4), (2, 8, 8, 3), jnp.float32, -1.0)


def encode_and_decode(normalized):
    model = Tokenizer(replace(IMAGES, normalized=normalized))
    params = model.init(jax.random.key(0))
    tokens = model.encode(params, images())
    return tokens, model.decode(params, tokens)


for name in ("both", "decoding", "none"):
    program(f"tokenizer: {name}", encode_and_decode, name)


def any_tokenizer(config):
    model, shape = model_of(config), (2, config.image_size, config.image_size, 3)
    params, x = model.init(jax.random.key(0)), jnp.zeros(shape, jnp.float32)
    tokens = model.encode(params, x)
    return tokens, model.decode(params, tokens), model.decode_partial(params, tokens)


PIXELS = MaskGITTokenizerConfig(16, 8, (1, 2), 1, 4, 20, 6)
VIT = ViTConfig(1, 16, 2)
ROW = OneDTokenizerConfig(16, 2, 6, 32, 4, True, VIT, VIT, PIXELS, True, True)
RESIDUAL = ResidualTokenizerConfig(replace(IMAGES, normalized="none"), 2)
FSQ = replace(
    IMAGES,
    normalized="none",
    quantizer="fsq",
    levels=(4, 4),
    code_dim=2,
    codebook_size=16,
)
LFQ = replace(FSQ, quantizer="lfq", levels=(), code_dim=4)
BITS = replace(LFQ, quantizer="bits")
FLOW = FlowTokenizerConfig(16, 4, 6, (4, 3), VIT, VIT, groups=3, steps=3, guidance=2.0)
for name, config in (
    ("maskgit", PIXELS),
    ("row", ROW),
    ("residual", RESIDUAL),
    ("fsq", FSQ),
    ("lfq", LFQ),
    ("bits", BITS),
    ("flow", FLOW),
):
    program(f"tokenizer: {name}", any_tokenizer, config)


# Parts outside the generation loop.
ENCODER = TextEncoderConfig(
    vocab_size=11, layers=1, width=8, heads=2, head_dim=4, ffn_width=16
)


def encoded():
    model, ids = TextEncoder(ENCODER), jnp.maximum(prompts(), 0)
    return model.caption(model.init(jax.random.key(0)), ids, prompts() >= 0)


def accepted(with_replacement):
    p, q = jax.nn.softmax(jax.random.normal(jax.random.key(8), (2, 3, 5), jnp.float32))
    return optimal_acceptance(p, q, 2, with_replacement)


def acceptance_head():
    model = AcceptanceHead(8)
    params = model.init_params(jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (2, 3, 8), jnp.float32)
    accept, use = jnp.full((2, 3), 0.5, jnp.float32), jnp.arange(3)[None] > 0
    use = jnp.broadcast_to(use, (2, 3))
    loss = model.loss(params, hidden, accept, use)
    return loss, model.confidence(params, hidden)


program("text encoder", encoded)
program("acceptance", accepted, True)
program("acceptance, without replacement", accepted, False)
program("stop head", acceptance_head)


# Continuous tokens.
def continuous(make=lambda plain: plain, dtype="float32"):
    generator = make(MARGenerator(mar.MODEL, mar.SCHEDULE, mar.HEAD))
    cold = 0.0 if isinstance(generator, MARGenerator) else 0.5
    sampling = Sampling.create(
        ROWS, temperature=[1.0, cold, 0.7], cfg_scale=[2.0, 0.5, 1.0]
    )
    params = cast_floats(mar.MODEL.init(jax.random.key(0)), dtype)
    variables = MARVariables(params, params)
    state = generator.init(
        variables, jnp.array([0, 2, 1]), sampling=sampling, keys=batch_keys(3, ROWS)
    )
    return generator.result(generator.step(variables, state))


program("continuous tokens", continuous)
program("continuous tokens: bfloat16", continuous, lambda plain: plain, "bfloat16")
program(
    "continuous tokens: coupled",
    continuous,
    lambda plain: CoupledMAR(plain, plain, window=2, radius=0.1),
)
program(
    "continuous tokens: densities",
    continuous,
    lambda plain: SpeculativeMAR(plain, plain, window=2, prefill=0.0),
)


# Next-scale models.
SCALES = MultiScaleTokenizer(tiny_scales.get_config().tokenizer).scales


def quantizer_of(config):
    params = MultiScaleTokenizer(config).init(jax.random.key(1))
    return {name: params[name] for name in QUANTIZER}


def scale_by_scale(make, dtype=None, steps=1, **changes):
    made = tiny_scales.get_config()
    made = replace(made, prior=replace(made.prior, **changes))
    params = NextScale(made.prior).init(jax.random.key(0))
    if dtype is not None:
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    generator = make(NextScale(made.prior))
    variables = NextScaleVariables(
        (params, params)[: 2 if isinstance(generator, CoupledScales) else 1],
        quantizer_of(made.tokenizer),
    )
    state = generator.init(
        variables, jnp.array([0, 2, 1]), sampling=settings(), keys=batch_keys(3, ROWS)
    )
    for _ in range(steps):
        state = generator.step(variables, state)
    return generator.result(state)


REFINED = {"attends": "own", "mask_layers": 1}


def refined():
    return scale_by_scale(lambda m: one_model(m, SCALES), steps=2, **REFINED)


def skipping():
    skip = TokenSkipping((0.5,), first_layer=1)
    return scale_by_scale(lambda m: one_model(m, SCALES, skipping=skip), steps=3)


def nearby():
    local = LocalAttention(2, radius=0, block=2)
    return scale_by_scale(lambda m: one_model(m, SCALES, local=local), steps=3)


def scale_tokens():
    model = MultiScaleTokenizer(tiny_scales.get_config().tokenizer)
    params, x = model.init(jax.random.key(0)), jnp.zeros((2, 32, 32, 3), jnp.float32)
    tokens = model.encode(params, x)
    return tokens, model.decode(params, tokens), model.decode_partial(params, tokens)


program("scales: one model", scale_by_scale, lambda model: one_model(model, SCALES))
program(
    "scales: bfloat16",
    scale_by_scale,
    lambda model: one_model(model, SCALES, record_log_probs=True),
    jnp.bfloat16,
)
program(
    "scales: coupled",
    scale_by_scale,
    lambda model: coupled_scales(model, model, SCALES, window=2, radius=0.1),
)
program("scales: refined", refined)
program("scales: skipping", skipping)
program("scales: local", nearby)
program("scales: tokenizer", scale_tokens)


# Training: two steps of each part.
STEPS = {"steps": 2, "batch": 2, "warmup": 1}


def two_steps(step, state, *arguments_and_batch):
    step, losses = jax.jit(step), []
    *arguments, batch = arguments_and_batch
    for i in range(2):
        state, metrics = step(state, *arguments, jnp.int32(i), batch)
        losses.append(metrics["loss"])
    return losses


def byte_images():
    return jnp.round(127.5 * (images() + 1.0)).astype(jnp.uint8)


def train_tokenizer(sizes=IMAGES):
    model, config = model_of(sizes), TokenizerTrainingConfig(**STEPS)
    state = tokenizer.init_state(model, config)
    images = jnp.zeros((2, sizes.image_size, sizes.image_size, 3), jnp.uint8)
    return two_steps(tokenizer.make_step(model, config), state, images)


def train_scales():
    config, made = TokenizerTrainingConfig(**STEPS), tiny_scales.get_config()
    model = MultiScaleTokenizer(made.tokenizer)
    images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    state = multi_scale_tokenizer.init_state(config, model.init(jax.random.key(0)))
    return two_steps(multi_scale_tokenizer.make_step(model, config), state, images)


def train_next_scale(**changes):
    config, made = PriorTrainingConfig(**STEPS), tiny_scales.get_config()
    model = NextScale(replace(made.prior, **changes))
    step = next_scale.make_step(model.config, SCALES, config)
    state = optimizer.init_train_state(config, model.init(jax.random.key(0)))
    tokens = jnp.zeros((2, 21), jnp.int32), jnp.array([0, 2])
    return two_steps(step, state, quantizer_of(made.tokenizer), tokens)


def train_classifier():
    model = Classifier(ClassifierConfig(8, 3, 2, (8, 8)))
    config = TrainingConfig(**STEPS)
    state = optimizer.init_train_state(config, model.init(jax.random.key(0)))
    batch = byte_images(), jnp.array([0, 2])
    return two_steps(classifier.make_step(model, config), state, batch)


def token_batch(config, length=16):
    shape, labels = (2, length), jnp.array([0, 2])
    return jax.random.randint(
        jax.random.key(7), shape, 0, config.vocab_size, jnp.int32
    ), labels


def train_prior(objective, dtype="float32", model=TARGET):
    exits = (1, 2) if objective == "sorted" else ()
    config = PriorTrainingConfig(
        objective=objective, exits=exits, block=3, compute_dtype=dtype, **STEPS
    )
    dropped = replace(model, token_dropout=0.1, residual_dropout=0.1, ffn_dropout=0.1)
    model = Transformer(dropped)
    state = optimizer.init_train_state(config, model.init(jax.random.key(0)))
    return two_steps(prior.make_step(model, config), state, token_batch(dropped))


def train_drafter(model, dtype="float32", **options):
    config = DrafterTrainingConfig(compute_dtype=dtype, **STEPS, **options)
    drafter_params = model.init_params(jax.random.key(0))
    ids = drafter_params.pop("ids", None)
    fixed = {} if ids is None else {"ids": ids}
    step = drafter.make_step(model, config, fixed)
    batch = *token_batch(TARGET), None
    state = optimizer.init_train_state(config, drafter_params)
    return two_steps(step, state, random_params(model.target), batch)


program("train: tokenizer", train_tokenizer)
program("train: residual tokenizer", train_tokenizer, RESIDUAL)
program("train: fsq", train_tokenizer, FSQ)
program("train: lfq", train_tokenizer, LFQ)
PLAIN_ROW = replace(ROW, pixels=None, mixed_order=False)
program("train: row", train_tokenizer, PLAIN_ROW)
program("train: classifier", train_classifier)
program("train: multi-scale tokenizer", train_scales)
program("train: next scale", train_next_scale)
program("train: next scale, refined", partial(train_next_scale, **REFINED))
for name in (
    "next",
    "sorted",
    "masked",
    "maskgit",
    "continuation",
    "refinement",
    "tidar",
):
    program(f"train: {name}", train_prior, name)
program("train: next, bfloat16", train_prior, "next", "bfloat16")
program("train: next, text", train_prior, "next", "float32", TEXT)
CONFIDENT = DFlashConfig(
    4,
    1,
    32,
    2,
    ffn_width=48,
    feature_layers=(0, 2),
    markov_rank=4,
    confidence=True,
    window=2,
)
TRAINED = {
    name: FEATURES[name][0]
    for name in (
        "eagle-1", "eagle-3, trimmed", "medusa, own outputs", "hydra++", "falcon",
        "kangaroo", "block", "block, refined",
    )
}  # fmt: skip
TRAINED["block, judged"] = DFlash(CONFIDENT, TARGET)
TRAINED["block, row above"] = DFlash(replace(BLOCK, block_size=3, above=True), TARGET)
TRAINED["prompt tokens"] = PPD(PPDConfig(3), replace(TARGET, extra_tokens=0))
for name, model in TRAINED.items():
    program(f"train: {name}", train_drafter, model)
for name in ("cross_entropy", "reverse_kl", "tvd", "tvd++"):
    options = {"max_cfg_scale": 3.0, "divergence": name}
    program(
        f"train: by {name}", partial(train_drafter, FEATURES["block"][0], **options)
    )
program(
    "train: block, bfloat16", partial(train_drafter, FEATURES["block"][0], "bfloat16")
)


def with_confidence():
    model = TRAINED["block, judged"]
    policy = ConfidenceCutoff(0.5, "head")
    return run_drafter(Adaptive(model, policy), TREE, bound_params(model))


program("adaptive: head", with_confidence)
program(
    "feature: block, row above",
    lambda: run_drafter(
        TRAINED["block, row above"],
        Tree.named("0,1,00"),
        bound_params(TRAINED["block, row above"]),
    ),
)
