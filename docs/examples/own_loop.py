"""Verification inside a jitted loop of your own: see ../verification.md."""

import jax
import jax.numpy as jnp

import jaxspec

V, LENGTH = 32, 40
tree, verifier = jaxspec.Tree.named("0,1,00,01,10"), jaxspec.verify.Coupled()


def run(target, params, keys):  # target(params, before, last): logits after two tokens
    best = jnp.argsort(-target(params, jnp.zeros(V, int), jnp.arange(V)), axis=-1)

    def body(state):
        tokens, length, calls = state
        ends = jnp.take_along_axis(tokens, length[:, None] + jnp.array([-2, -1]), 1)
        before, nodes = [ends[:, 0]], [ends[:, 1]]
        for parent, rank in zip(tree.parents[1:], tree.ranks[1:]):
            before.append(nodes[parent])
            nodes.append(best[nodes[parent], rank])
        nodes = jnp.stack(nodes, 1)
        draft = jaxspec.Draft(nodes, jnp.ones(nodes.shape, bool))
        scores = target(params, jnp.stack(before, 1), nodes)  # all nodes: [B, N, V]
        positions = length[:, None] + jnp.arange(tree.depth + 1)
        noise = jaxspec.verify.draw_noise(keys, positions, tree.size, V)
        new, count = verifier.verify(scores, draft, tree, noise).emitted(draft)
        tokens = jax.vmap(jax.lax.dynamic_update_slice)(tokens, new, length[:, None])
        return tokens, jnp.minimum(length + count, LENGTH), calls + 1

    tokens = jnp.zeros((keys.shape[0], LENGTH + 3), jnp.int32)
    start = tokens, jnp.full(keys.shape, 2), 0
    return jax.lax.while_loop(lambda state: (state[1] < LENGTH).any(), body, start)


draw = jax.jit(run, static_argnums=0)
table = 4 * jax.random.normal(jax.random.key(0), (V, V))
out = draw(lambda p, a, b: p[b] + p[a] / 4, table, jaxspec.batch_keys(0, 4))
print(out[0][:, :LENGTH].shape, out[2])  # 38 new tokens each, in fewer calls


# The same through a Flax NNX module.
from flax import nnx


class Bigram(nnx.Module):
    def __init__(self, rngs):
        init = nnx.initializers.normal(1.5)
        self.embed = nnx.Embed(V, 16, rngs=rngs, embedding_init=init)
        self.head = nnx.Linear(16, V, rngs=rngs, kernel_init=init)

    def __call__(self, before, last):
        return self.head(self.embed(last) + 0.1 * self.embed(before))


graph, params = nnx.split(Bigram(nnx.Rngs(0)))
out = draw(
    lambda params, a, b: nnx.merge(graph, params)(a, b), params, jaxspec.batch_keys(0, 4)
)
print(out[0][:, :LENGTH].shape, out[2])
