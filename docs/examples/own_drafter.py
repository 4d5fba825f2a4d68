"""A drafter for a model of one's own: see ../drafters.md."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

import jaxspec
from jaxspec.speculative.target import Prefill

V, WIDTH, HEADS, LAYERS, LENGTH = 48, 48, 4, 2, 40


# A transformer written without jaxspec, with random parameters.
def init_params(key):
    def matrix(i, *shape):
        return jax.random.normal(jax.random.fold_in(key, i), shape) * shape[0] ** -0.5

    names = {"qkv": 3 * WIDTH, "out": WIDTH, "mlp": WIDTH}
    layers = [
        {k: matrix(10 * n + i, WIDTH, size) for i, (k, size) in enumerate(names.items())}
        for n in range(1, LAYERS + 1)
    ]
    wte, wpe, head = matrix(0, V, WIDTH), matrix(1, LENGTH + 8, WIDTH), matrix(2, WIDTH, V)
    return {"wte": wte * V**0.5, "wpe": wpe, "h": layers, "head": 3 * head}


def forward(params, cache, tokens, positions, mask):
    x = params["wte"][tokens] + params["wpe"][positions]
    put = jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=1))
    features, written = [], []
    for layer, (k, v) in zip(params["h"], cache.layers):
        split = (x @ layer["qkv"]).reshape(*tokens.shape, 3, HEADS, WIDTH // HEADS)
        q, new_k, new_v = jnp.moveaxis(split, (2, 3), (0, 2))  # each [B, H, T, F]
        k, v = put(k, new_k, cache.lengths), put(v, new_v, cache.lengths)
        scores = q @ k.mT * (WIDTH // HEADS) ** -0.5
        mixed = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9)) @ v
        x = x + mixed.swapaxes(1, 2).reshape(x.shape) @ layer["out"]
        x = x + jax.nn.gelu(x @ layer["mlp"])
        features, written = [*features, x], [*written, (k, v)]
    x = jax.nn.standardize(x)
    cache = jaxspec.KVCache(tuple(written), cache.lengths, cache.visible)
    return x @ params["head"], jnp.concatenate(features, axis=-1), cache


def read(params, tokens, extra=0):
    """Logits and features of whole sequences, and a cache with `extra` free slots."""
    (batch, length), slots = tokens.shape, tokens.shape[1] + extra
    empty = jnp.zeros((batch, HEADS, slots, WIDTH // HEADS))
    zeros, visible = jnp.zeros(batch, jnp.int32), jnp.ones((batch, slots), bool)
    cache = jaxspec.KVCache(((empty, empty),) * LAYERS, zeros, visible)
    order = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    causal = jnp.arange(slots) <= order[..., None]
    logits, features, cache = forward(params, cache, tokens, order, causal)
    return logits, features, jaxspec.KVCache(cache.layers, zeros + length, visible)


def prefill(params, prompt, extra):
    logits, features, cache = read(params, prompt, extra)
    return Prefill(logits[:, -1], features, cache)


def read_params(params):  # what the drafter shares with the model
    return {"embedding": params["wte"], "head": params["head"]}


def generate(params, prompt, key, drafter=None, own=None, tree=jaxspec.Tree.root()):
    target = jaxspec.Target(V, 1, prefill, forward)
    engine = jaxspec.Engine(target, LENGTH - 1, drafter, tree)
    variables = engine.variables(params, own)
    sampling = jaxspec.Sampling.create()
    return jax.jit(engine.generate)(variables, prompt, sampling=sampling, keys=key)


def train(params, drafter, sequences, steps, key):
    """The drafter's parameters, and the overlap of its predictions with the model."""
    logits, features, _ = jax.jit(read)(params, sequences)
    adamw = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))

    def step(state, key):
        own, moments = state
        rows_key, key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (16,), 0, len(sequences))
        loss = lambda own: jaxspec.train.drafter_loss(
            drafter, own, params, features[rows], sequences[rows], logits[rows], key
        )
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(own)
        updates, moments = adamw.update(gradient, moments, own)
        return (optax.apply_updates(own, updates), moments), metrics["overlap"]

    init_key, key = jax.random.split(key)
    own = drafter.init_params(init_key)
    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))
    (own, _), overlap = run((own, adamw.init(own)), jax.random.split(key, steps))
    return own, overlap


def main(sequences=512, steps=250):
    params = init_params(jax.random.key(0))
    prompts = jax.random.randint(jax.random.key(1), (sequences, 1), 0, V)
    plain = generate(params, prompts, jax.random.key(2)).tokens
    data = jnp.concatenate([prompts, plain], axis=1)

    model = jaxspec.drafters.FeatureTarget(V, WIDTH, LAYERS, read_params)
    config = jaxspec.drafters.DFlashConfig(
        block_size=4, layers=1, width=WIDTH, heads=HEADS, ffn_width=96,
        feature_layers=(0, 1), markov_rank=16,
    )  # fmt: skip
    drafter = jaxspec.drafters.DFlash(config, model)
    own, overlap = train(params, drafter, data, steps, jax.random.key(3))

    prompt, key = jnp.arange(8)[:, None], jax.random.key(4)  # not those of the data
    expected = generate(params, prompt, key).tokens
    tree = jaxspec.Tree.named("chain-4")
    out = generate(params, prompt, key, drafter, own, tree)
    same = bool((out.tokens == expected).all())
    per_call = float(out.lengths.sum() / out.stats.calls.sum())
    print(f"same tokens: {same}; tokens per call: {per_call:.2f}; overlap: {overlap[-1]}")
    return same, per_call, overlap


if __name__ == "__main__":
    main()
