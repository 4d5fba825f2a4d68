"""What relaxed rules do to the law of one token, at how much acceptance.

Our `CoupledRelaxed` beside LANTERN, both as the library runs them: the law of the token
after a prefix is computed, not estimated, for every draft. With one child the drafts
are all listed as well, so nothing is left to chance.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec import __version__
from jaxspec.bench.plot import Line, Panel, plot_panels
from jaxspec.bundle import Bundle
from jaxspec.device import device_name
from jaxspec.errors import ConfigError
from jaxspec.images import png_bytes
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.pipeline import Settings, draw, spread_classes
from jaxspec.rules import rule_params, rule_words
from jaxspec.spec.draft import Draft, Round
from jaxspec.spec.neighbours import Neighbours, neighbour_table
from jaxspec.spec.noise import row_keys
from jaxspec.spec.sampling import active_steps, guide, process
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Coupled, CoupledRelaxed, Lantern, Rejection
from jaxspec.spec.verify.relaxed_set import relaxed_set

Cell = tuple[str, Any, str]
Seed = int | tuple[int, ...]
_BLOCK = 512  # drafts whose laws are held at once
_EXACT = ("coupled", "coupled")  # rule and drafts of lossless coupled decoding


@dataclass(frozen=True)
class Position:
    """One place in a sequence: what target and drafter say comes next.

    Attributes:
      p: float64 [V], the target's probabilities.
      q: float64 [V], the drafter's.
      codebook: float32 [V, d].
      neighbours: of its codes.
    """

    p: np.ndarray
    q: np.ndarray
    codebook: np.ndarray
    neighbours: Neighbours


@dataclass(frozen=True)
class Drafts:
    """Children of one node, drawn or listed.

    Attributes:
      tokens: int32 [n, W].
      chance: float64 [n], sums to 1.
      sample: int32 [n], the target's own sample under the noise that ranked the
        children; None where children were drawn without sight of it.
    """

    tokens: np.ndarray
    chance: np.ndarray
    sample: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """What comes out at one position.

    Attributes:
      output: float64 [V], the law of the emitted token.
      acceptance: chance that it is a drafted child.
      shift: mean distance from the code that exact sampling would have drawn, a bound
        on the Wasserstein-1 distance to the target; None for rules without such a code.
    """

    output: np.ndarray
    acceptance: float
    shift: float | None


# --- Positions ---------------------------------------------------------------------


def toy_positions(
    count: int, *, near: bool, codes: int = 64, width: int = 4, most: int = 50
) -> list[Position]:
    """Random unit vectors for codes, `p` from `Dirichlet(.5)`, a drafter near or far.

    Args:
      count: positions, each with a codebook of its own.
      near: `q` is `p` with standard normal noise on its logits; else it is another draw
        from `Dirichlet(.5)`, which knows nothing of `p`.
      codes: `V`.
      width: `d`.
      most: neighbours that rules may test.
    """
    positions = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        book = rng.normal(size=(codes, width))
        book = (book / np.linalg.norm(book, axis=1, keepdims=True)).astype(np.float32)
        p, q = rng.dirichlet(np.full(codes, 0.5), size=2)
        if near:
            q = p * np.exp(rng.normal(size=codes))
            q = q / q.sum()
        positions.append(Position(p, q, book, neighbour_table(jnp.asarray(book), most)))
    return positions


def model_positions(
    bundle: Bundle, count: int, *, guidance: float = 2.0, seed: int = 0, most: int = 100
) -> list[Position]:
    """Random places in pictures that were drawn plainly, one in each picture.

    `p` and `q` are the processed distributions of the target and of its drafter after
    the same prefix, temperature 1; the drafter's is that of the first drafted token.

    Args:
      bundle: models.
      count: pictures; their classes are spread evenly.
      guidance: classifier-free guidance scale.
      seed: of the pictures and of the places.
      most: neighbours that rules may test.

    Raises:
      ConfigError: the bundle has no drafter.
    """
    if bundle.drafter is None:
        raise ConfigError(f"bundle '{bundle.name}' has no drafter to measure with")
    classes = spread_classes(len(bundle.class_names), count)
    settings = Settings(classes, seed=seed, guidance=guidance, batch=count)
    tokens = jnp.asarray(draw(bundle, settings, Tree.root()).tokens)
    length = tokens.shape[1]
    index = jnp.asarray(np.random.default_rng(seed).integers(1, length, size=count))
    model, drafter = Transformer(bundle.prior.config), bundle.drafter.config
    streams = make_target(model, guided=guidance != 1.0).streams
    sampling, tree = settings.sampling(count), Tree.chain(1)
    order = active_steps(sampling)
    first = model.config.prefix_length - 1  # position that scores the first token

    def both(params, drafter_params, tokens, index):
        prompt = jnp.concatenate([jnp.asarray(classes)] * streams)
        null = jnp.repeat(jnp.arange(streams) > 0, count)
        logits, features = model.score(
            params,
            prompt,
            jnp.concatenate([tokens] * streams),
            null=null,
            taps=drafter.config.taps,
        )
        place = jnp.concatenate([index] * streams) + first
        logits = jnp.take_along_axis(logits, place[:, None, None], axis=1)[:, 0]
        scores = process(guide(logits, sampling, index), sampling, order)
        # The drafter has read what stands before the root, the newest token.
        state = drafter.init(drafter_params, features, place, length, tree, count)
        this = Round(
            root=jnp.take_along_axis(tokens, index[:, None] - 1, axis=1)[:, 0],
            position=index + first,
            index=index,
            noise=jnp.zeros((count, 2, model.config.vocab_size)),
            keys=row_keys(seed, count),
            sampling=sampling,
            tree=tree,
            selection="without_replacement",
            order=order,
        )
        draft, _ = drafter.propose(drafter_params, state, this)
        return jax.nn.log_softmax(scores, axis=-1), draft.log_q[:, 0]

    params = bundle.prior.params
    bound = drafter.bind(bundle.drafter.params, params)
    with jax.default_matmul_precision("highest"):
        logs = jax.jit(both)(params, bound, tokens, index)
    p, q = (np.exp(np.asarray(x, np.float64)) for x in logs)
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    book = np.asarray(bundle.tokenizer.params["codebook"])
    needed = rule_params(CoupledRelaxed(most, 1.0), bundle)
    assert needed is not None
    return [
        Position(*pair, book, needed["neighbours"]) for pair in zip(p, q, strict=True)
    ]


# --- Drafts ------------------------------------------------------------------------


def blind_drafts(q: np.ndarray, children: int, count: int, seed: Seed = 0) -> Drafts:
    """Children drawn from `q` without replacement; one child is listed exactly.

    More are drawn by inverting the cumulative probabilities at randomly shifted Sobol
    points: each draft has the right law, and their mean strays less than that of
    independent ones.
    """
    if children == 1:
        return Drafts(np.arange(len(q), dtype=np.int32)[:, None], q)
    from scipy.stats.qmc import Sobol

    shift = np.random.default_rng(seed).random(children)
    points = (Sobol(children, scramble=False).random(count) + shift) % 1.0
    left, tokens, row = np.tile(q, (count, 1)), [], np.arange(count)
    for r in range(children):
        below = np.cumsum(left, axis=1)
        wanted = points[:, r, None] * below[:, -1:] * (1 - 1e-12)
        tokens.append((below <= wanted).sum(axis=1))
        left[row, tokens[-1]] = 0.0
    return Drafts(np.stack(tokens, 1).astype(np.int32), np.full(count, 1 / count))


def coupled_drafts(
    p: np.ndarray, q: np.ndarray, children: int, count: int, seed: Seed = 0
) -> Drafts:
    """Children that are the best of `log q + noise`, beside the target's sample.

    One child is listed with the sample exactly; more are simulated. Noise is drawn as
    exponential clocks: the best of `log q + Gumbel` is the first of `clock / q`.
    """
    size = len(p)
    if children == 1:
        sample, token = np.divmod(np.arange(size * size, dtype=np.int32), size)
        return Drafts(token[:, None], coupled_pairs(p, q).ravel(), sample)
    rng, samples, tokens = np.random.default_rng(seed), [], []
    with np.errstate(divide="ignore"):
        slow_p, slow_q = 1 / p, 1 / q
    for start in range(0, count, 1024):
        clocks = rng.standard_exponential((min(1024, count - start), size))
        samples.append((clocks * slow_p).argmin(axis=1))
        clocks *= slow_q
        row = np.arange(len(clocks))
        first = []
        for _ in range(children):
            first.append(clocks.argmin(axis=1))
            clocks[row, first[-1]] = np.inf
        tokens.append(np.stack(first, axis=1))
    return Drafts(
        np.concatenate(tokens).astype(np.int32),
        np.full(count, 1 / count),
        np.concatenate(samples).astype(np.int32),
    )


def coupled_pairs(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Chance of each pair `(y, x)` of samples of `p` and `q` under shared noise.

    `[V, V]`, exact. With exponential clocks, `y` the first of `clock / p` and `x` of
    `clock / q`, the pair needs `clock_x / clock_y` in an interval, and integrating the
    clocks out leaves, for `B(r) = sum max(p, r q)`, the integral of `p_y q_x / B(r)^2`
    from `p_x / q_x` to `p_y / q_y`, and `p_y / B(p_y / q_y)` for `y = x`. `B` is linear
    between the ratios, so the integral is a sum.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.where(p > 0, p / q, 0.0)
    order = np.argsort(odds)
    sorted_odds, finite = odds[order], np.isfinite(odds[order])
    r = np.where(finite, sorted_odds, 0.0)
    above = np.append(np.cumsum(p[order][::-1])[::-1][1:], 0.0)
    slope = np.cumsum(q[order])
    b = above + r * slope
    last = int(finite.sum()) - 1
    integral = np.zeros(len(p))
    integral[1 : last + 1] = np.cumsum(
        np.diff(r[: last + 1]) / (b[:last] * b[1 : last + 1])
    )
    integral[last + 1 :] = integral[last] + 1 / (b[last] * slope[last])
    area, at = np.empty(len(p)), np.empty(len(p))
    area[order] = integral
    at[order] = np.where(finite, b, np.inf)
    pairs = p[:, None] * q * np.maximum(area[:, None] - area, 0.0)
    np.fill_diagonal(pairs, p / at)
    return pairs


# --- Outcomes ----------------------------------------------------------------------


def blind_outcome(rule: Any, position: Position, drafts: Drafts) -> Outcome:
    """The outcome over drafts that were made without sight of the noise.

    Args:
      rule: anything with `law`.
      position: where.
      drafts: children as drawn from `q` without replacement.
    """
    amounts = _amounts(rule)
    model = replace(rule, **dict.fromkeys(amounts, 1.0))
    tokens, chance = drafts.tokens, drafts.chance
    size = min(_BLOCK, len(tokens))
    missing = -len(tokens) % size
    tokens = np.concatenate([tokens, tokens[:missing]])
    chance = np.concatenate([chance, np.zeros(missing)])
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(position.p), np.log(position.q)
    output, rejected = _outcome(
        model,
        {k: jnp.float32(v) for k, v in amounts.items()},
        jnp.asarray(log_p, jnp.float32),
        jnp.asarray(log_q, jnp.float32),
        jnp.asarray(tokens.reshape(-1, size, tokens.shape[1])),
        jnp.asarray(chance.reshape(-1, size), jnp.float32),
        {"neighbours": position.neighbours},
    )
    shift = None
    if isinstance(rule, CoupledRelaxed):
        reach = stand_ins(rule, position)
        near = reach[drafts.tokens[:, 0]]
        for r in range(1, drafts.tokens.shape[1]):
            near = np.minimum(near, reach[drafts.tokens[:, r]])
        moved = np.where(np.isfinite(near), near, 0.0) @ position.p
        shift = float(drafts.chance @ moved)
    return Outcome(np.asarray(output, np.float64), 1.0 - float(rejected), shift)


def coupled_outcome(
    rule: Coupled | CoupledRelaxed, position: Position, drafts: Drafts
) -> Outcome:
    """The outcome over drafts that were ranked with the target's own noise."""
    assert drafts.sample is not None
    distance = stand_ins(rule, position)[drafts.tokens, drafts.sample[:, None]]
    best, nearest = distance.argmin(axis=1), distance.min(axis=1)
    caught = np.isfinite(nearest)
    child = np.take_along_axis(drafts.tokens, best[:, None], axis=1)[:, 0]
    emitted = np.where(caught, child, drafts.sample)
    output = np.bincount(emitted, drafts.chance, len(position.p))
    shift = float(drafts.chance @ np.where(caught, nearest, 0.0))
    return Outcome(output, float(drafts.chance @ caught), shift)


def stand_ins(rule: Coupled | CoupledRelaxed, position: Position) -> np.ndarray:
    """Distance from each child `x` to each sample `y` it may stand for, else infinite.

    Float32 `[V, V]`, rows are children. `Coupled` lets a child stand for itself alone.
    """
    size = len(position.p)
    reach = np.full((size, size), np.inf, np.float32)
    if isinstance(rule, CoupledRelaxed):
        ids = np.asarray(position.neighbours.ids)[:, : rule.k]
        far = np.asarray(position.neighbours.distances)[:, : rule.k]
        p = jnp.asarray(position.p, jnp.float32)
        everyone = jnp.arange(size)
        *_, fits = relaxed_set(
            position.neighbours, lambda x: p[x], everyone, rule.k, rule.budget, rule.lam
        )
        fits = np.asarray(fits) & (far <= rule.radius)
        np.put_along_axis(reach, ids, np.where(fits, far, np.inf), axis=1)
    np.fill_diagonal(reach, 0.0)
    return reach


def _amounts(rule: Any) -> dict[str, float]:
    """The settings of a rule that may be arrays."""
    names = ("delta", "budget", "lam", "radius")
    found = {name: getattr(rule, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


@partial(jax.jit, static_argnums=0)
def _outcome(rule, amounts, log_p, log_q, tokens, chance, params):
    """Law of the output and chance that no child is kept, over blocks of drafts.

    The amounts of a rule are arguments here, so a sweep over them is compiled once.
    """
    rule = copy.copy(rule)
    for name, value in amounts.items():
        object.__setattr__(rule, name, value)  # checked when the real rule was made
    children, vocab_size = tokens.shape[-1], log_p.shape[0]
    tree = Tree.from_paths([(rank,) for rank in range(children)])

    def block(total, drafts):
        tokens, chance = drafts
        rows = len(chance)
        draft = Draft(
            jnp.pad(tokens, ((0, 0), (1, 0))),
            jnp.ones((rows, tree.size), bool),
            log_q=jnp.broadcast_to(log_q, (rows, 1, vocab_size)),
            drawn="without_replacement",
        )
        scores = jnp.broadcast_to(log_p, (rows, tree.size, vocab_size))
        law = rule.law(scores, draft, tree, params=params)
        stop = law.stop * chance[:, None]
        output = stop[:, 0] @ law.final[:, 0]
        output = output.at[tokens].add(stop[:, 1:])
        return (total[0] + output, total[1] + jnp.sum(stop[:, 0])), None

    start = jnp.zeros(vocab_size), jnp.zeros(())
    return jax.lax.scan(block, start, (tokens, chance))[0]


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Between two laws `[V]`."""
    return float(np.abs(a - b).sum() / 2)


def wasserstein(a: np.ndarray, b: np.ndarray, codebook: np.ndarray) -> float:
    """Wasserstein-1 between laws of codes, Euclidean, by linear programming.

    What both laws hold stays in place, as it may for any metric, so surpluses alone are
    carried to deficits. Solved as Kantorovich's dual, which is feasible however small
    they are: the highest `f . surplus - g . deficit` with `f_i - g_j` at most the
    distance.
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, hstack, kron

    more, less = np.flatnonzero(a > b), np.flatnonzero(b > a)
    moved = total_variation(a, b)
    if not (len(more) and len(less)):
        return 0.0
    cost = np.linalg.norm(codebook[more, None] - codebook[less], axis=-1)
    have, want = (a - b)[more], (b - a)[less]
    first = kron(eye_array(len(more)), np.ones((len(less), 1)))
    second = kron(np.ones((len(more), 1)), eye_array(len(less)))
    free = [(None, None)] * (len(more) + len(less) - 1)
    found = linprog(
        np.concatenate([-have / have.sum(), want / want.sum()]),
        A_ub=hstack([first, -second]).tocsr(),
        b_ub=cost.ravel(),
        bounds=[*free, (0.0, 0.0)],  # a constant in all of them changes nothing
    )
    return float(-found.fun * moved)


# --- The sweep ---------------------------------------------------------------------

NEIGHBOURS = (5, 10, 50)
MASSES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
FACTORS = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
OUR_MASSES, OUR_FACTORS = (0.05, 0.1, 0.2, 0.5), (2.0, 5.0, 10.0)
# In units of the median distance between a code and its nearest neighbour.
RADII = (0.75, 1.0, 1.25, 1.5, 2.0, 2.5)


def our_rules(positions: Sequence[Position]) -> dict[str, list[CoupledRelaxed]]:
    """Curves of our rule: mass, factor or radius swept, by name.

    Radii are swept without a limit of mass, over as many neighbours as the tables have.
    """
    nearest = [np.asarray(x.neighbours.distances[:, 0]) for x in positions]
    unit, most = float(np.median(nearest)), positions[0].neighbours.most
    wide = [CoupledRelaxed(most, 1.0, radius=round(r * unit, 3)) for r in RADII]
    curves = {"ours, radius": wide}
    for k in NEIGHBOURS:
        curves[f"ours, budget, k={k}"] = [CoupledRelaxed(k, x) for x in OUR_MASSES]
        curves[f"ours, lam, k={k}"] = [CoupledRelaxed(k, lam=x) for x in OUR_FACTORS]
    return curves


def lantern_rules(most: int) -> dict[str, list[Lantern]]:
    """Curves of LANTERN and LANTERN++, by name.

    Args:
      most: neighbours that the tables serve; tested too. The optimal residual costs
        `V k` for each draft and is not asked for with many neighbours.
    """
    curves = {}
    for k in sorted({*NEIGHBOURS, most}):
        for residual in ("published", "optimal") if k < 50 else ("published",):
            curves[f"LANTERN, {residual}, k={k}"] = [
                Lantern(k, delta=x, residual=residual) for x in MASSES
            ]
            curves[f"LANTERN++, {residual}, k={k}"] = [
                Lantern(k, lam=x, residual=residual) for x in FACTORS
            ]
    return curves


def cells(positions: Sequence[Position]) -> list[Cell]:
    """What is measured: curve, rule, and whether children are "blind" or "coupled"."""
    lossless = {"lossless": [Rejection(), Coupled()]}
    curves = {
        **lossless,
        **our_rules(positions),
        **lantern_rules(positions[0].neighbours.most),
    }
    return [
        (curve, rule, how)
        for curve, rules in curves.items()
        for rule in rules
        for how in ("blind", "coupled")
        if how == "blind" or isinstance(rule, (Coupled, CoupledRelaxed))
    ]


def measure_setting(
    name: str,
    positions: Sequence[Position],
    children: int,
    todo: Sequence[Cell],
    *,
    drafts: int = 4096,
    draws: int = 1 << 19,
    seed: int = 0,
    metric: bool = True,
    progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """One row for each of `todo`, means over positions.

    Args:
      name: of the setting.
      positions: where rules are compared.
      children: `W`.
      todo: see `cells`.
      drafts: of more than one child, drawn from `q`; the same for all rules.
      draws: of the noise, for more than one child ranked with it.
      seed: of both.
      metric: compute the Wasserstein-1 distance.
      progress: called after each position of each row.
    """
    found = np.zeros((len(todo), 4))
    for i, position in enumerate(positions):
        p, q = position.p, position.q
        blind = blind_drafts(q, children, drafts, (seed, i, 1))
        coupled = coupled_drafts(p, q, children, draws, (seed, i, 2))
        for j, (_, rule, how) in enumerate(todo):
            if how == "blind":
                outcome = blind_outcome(rule, position, blind)
            else:
                outcome = coupled_outcome(rule, position, coupled)
            tv = total_variation(outcome.output, p)
            w1 = wasserstein(outcome.output, p, position.codebook) if metric else np.nan
            shift = np.nan if outcome.shift is None else outcome.shift
            found[j] += np.array([outcome.acceptance, tv, w1, shift]) / len(positions)
            progress()
    rows = []
    for (curve, rule, how), values in zip(todo, found, strict=True):
        numbers = [float(x) if np.isfinite(x) else None for x in values]
        row = {"setting": name, "children": children, "curve": curve}
        row |= {"rule": rule_words(rule), "drafts": how}
        row |= dict(zip(("acceptance", "tv", "w1", "shift"), numbers, strict=True))
        rows.append(row)
    return rows


def measure_relaxation(
    bundle: Bundle,
    *,
    toys: int = 8,
    pictures: int = 16,
    children: Sequence[int] = (1, 3),
    drafts: int = 4096,
    draws: int = 1 << 19,
    seed: int = 0,
) -> dict[str, Any]:
    """All that `relaxation_markdown` and `relaxation_plot` show, but for the command.

    Args:
      bundle: models; its target, drafter and codebook are one of the settings.
      toys: positions of each toy setting.
      pictures: positions of the bundle, one in each picture.
      children: drafted children to measure with.
      drafts: see `measure_setting`.
      draws: see `measure_setting`.
      seed: of pictures, drafts and noise.
    """
    settings = {
        "toy, far drafter": toy_positions(toys, near=False),
        "toy, near drafter": toy_positions(toys, near=True),
        bundle.name: model_positions(bundle, pictures, seed=seed),
    }
    laws = sum(len(x) * len(cells(x)) for x in settings.values()) * len(children)
    rows, about = [], {}
    with tqdm(total=laws, desc="bench", unit="law") as bar:
        for name, positions in settings.items():
            overlap = [np.minimum(x.p, x.q).sum() for x in positions]
            about[name] = {
                "positions": len(positions),
                "codes": positions[0].codebook.shape[0],
                "dimensions": positions[0].codebook.shape[1],
                "overlap": float(np.mean(overlap)),
            }
            for count in children:
                rows += measure_setting(
                    name,
                    positions,
                    count,
                    cells(positions),
                    drafts=drafts,
                    draws=draws,
                    seed=seed,
                    metric=name != bundle.name,
                    progress=bar.update,
                )
    return {
        "checkpoint": bundle.name,
        "settings": about,
        "drafts": drafts,
        "draws": draws,
        "seed": seed,
        "rows": rows,
        "equal_acceptance": equal_acceptance(rows),
        "device": device_name(),
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
    }


# --- Equal acceptance --------------------------------------------------------------


COMPARED = ("lossless", "ours, radius", "ours, budget, k=50", "ours, lam, k=50")


def equal_acceptance(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of ours, each with what LANTERN shows at the same acceptance added.

    Those of `COMPARED` that accept at least what `Coupled` does with coupled children;
    see `lantern_at` for `lantern` and `lantern_optimal`.
    """
    compared = []
    for row in rows:
        beside = [
            r for r in rows if all(r[k] == row[k] for k in ("setting", "children"))
        ]
        least = next(r for r in beside if (r["rule"], r["drafts"]) == _EXACT)
        if row["curve"] in COMPARED and row["rule"] != "rejection":
            if row["acceptance"] >= least["acceptance"]:
                theirs = {
                    "lantern": lantern_at(beside, row["acceptance"], "published"),
                    "lantern_optimal": lantern_at(beside, row["acceptance"], "optimal"),
                }
                compared.append(row | theirs)
    return compared


def lantern_at(
    rows: Sequence[dict[str, Any]], acceptance: float, residual: str
) -> dict[str, Any] | None:
    """What the best LANTERN of a sweep shows at an acceptance.

    Of all curves with this residual, each from `Rejection` on and linear between swept
    settings, the one with the least total variation; `rule` is its nearest setting.
    Where `Rejection` accepts as much, that is the answer; None where no LANTERN does.
    """
    base = next(r for r in rows if r["rule"] == "rejection")
    if acceptance <= base["acceptance"]:
        return {k: base[k] for k in ("rule", "tv", "w1")}
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["curve"].startswith("LANTERN") and residual in row["curve"]:
            curves.setdefault(row["curve"], []).append(row)
    found = []
    for swept in curves.values():
        curve = sorted([base, *swept], key=lambda row: row["acceptance"])
        if acceptance > curve[-1]["acceptance"]:
            continue
        nearest = min(swept, key=lambda row: abs(row["acceptance"] - acceptance))
        here = {"rule": nearest["rule"], "w1": None}
        x = [row["acceptance"] for row in curve]
        for name in ("tv", "w1"):
            y = [row[name] for row in curve]
            if None not in y:
                here[name] = float(np.interp(acceptance, x, y))
        found.append(here)
    return min(found, key=lambda here: here["tv"], default=None)


# --- Reports -----------------------------------------------------------------------


def relaxation_markdown(result: dict[str, Any], picture: str | None = None) -> str:
    """Tables at equal acceptance, then every row that was measured.

    Args:
      result: of `measure_relaxation`, with the `command`.
      picture: address of the plot, if it is to be shown.
    """
    rows, compared = result["rows"], result["equal_acceptance"]
    about = [
        f"- {name}: {x['positions']} positions, {x['codes']} codes in "
        f"{x['dimensions']} dimensions; `p` and `q` overlap by {x['overlap']:.3f}."
        for name, x in result["settings"].items()
    ]
    sections = list(dict.fromkeys((r["setting"], r["children"]) for r in rows))
    lines = [
        f"# What relaxed rules do to the law of one token: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}.",
        "",
        _HOW.format(**result).strip(),
        "",
        *about,
        "",
        *([f"![TV over acceptance]({picture})", ""] if picture else []),
        "## At equal acceptance",
        "",
        _COMPARISON.strip(),
        "",
        *_summary(sections, rows, compared),
    ]
    for section in sections:
        here = [r for r in compared if (r["setting"], r["children"]) == section]
        lines += ["", f"### {_words(section)}", "", *_comparison(here)]
    lines += ["", "## Everything measured"]
    for section in sections:
        here = [r for r in rows if (r["setting"], r["children"]) == section]
        lines += ["", f"### {_words(section)}: all rows", "", *_everything(here)]
    return "\n".join(lines) + "\n"


_HOW = """
The law of the token that comes out after a prefix, for one node with one or three
drafted children, against the target's `p`. Acceptance is the chance that a child is
followed, TV the total variation distance, W1 the Wasserstein-1 distance in the
Euclidean metric of the codebook (by linear programming, toys alone). "W1 at most" is
the mean distance between the emitted code and the one that exact sampling draws with
the same noise: a bound of W1 that only our rule and `coupled` have. All are means over
positions.

"Blind" children are drawn from `q` without replacement; LANTERN has these alone.
"Coupled" children are the best of `log q + noise`, the noise being that of the target's
own sample. The law given a draft is always exact. One child: all drafts are listed with
their chances, coupled ones with the exact joint law of child and sample, so nothing is
sampled. Three: {drafts} blind drafts for each position, the same for all rules, and
{draws} draws of the noise. What that sampling alone leaves is the TV of the lossless
rules, `rejection` for blind and `coupled` for coupled children; nothing is subtracted.

In the toys codes are random unit vectors and `p` is drawn from Dirichlet(.5). The near
drafter's `q` is `p` with standard normal noise on its logits; the far drafter's is
another draw from Dirichlet(.5). In the last setting `p` and `q` are the processed
distributions of the target and of its block drafter (first drafted token) after the
same prefix: one random place in each of so many plainly drawn pictures, cfg 2,
temperature 1.
"""

_COMPARISON = """
"LANTERN" is the best of all its curves (LANTERN and LANTERN++, every k) at our row's
acceptance: the least TV, linear between swept settings, the nearest of which is named.
First with the residual as published, then with the optimal one. A ratio below 1 says
that ours distorts less; it is infinite where `rejection` accepts as much without loss.
The summary counts the relaxed rows of ours with coupled children.
"""


def _summary(sections, rows, compared) -> list[str]:
    table = _table(
        "setting | `rejection` accepts | `coupled` accepts | ours distorts less than "
        "LANTERN | than with the optimal residual"
    )
    for section in sections:
        here = [r for r in rows if (r["setting"], r["children"]) == section]
        lossless = {(r["rule"], r["drafts"]): r["acceptance"] for r in here}
        ours = [
            r
            for r in compared
            if (r["setting"], r["children"], r["drafts"]) == (*section, "coupled")
            and r["rule"] != "coupled"
        ]
        line = [_words(section), _3(lossless["rejection", "blind"])]
        line.append(_3(lossless[_EXACT]))
        for name in ("lantern", "lantern_optimal"):
            pairs = [(r, r[name]) for r in ours if r[name] is not None]
            less = [x for x, y in pairs if _relaxed(y) and x["tv"] < y["tv"]]
            line.append(f"in {len(less)} of {len(pairs)} rows")
        table.append(_row(line))
    return table


def _relaxed(row: dict[str, Any]) -> bool:
    return row["rule"] != "rejection"


def _comparison(rows: Sequence[dict[str, Any]]) -> list[str]:
    table = _table(
        "ours | children | acceptance | TV | W1 | W1 at most | LANTERN | TV | W1 "
        "| TV ratio | optimal residual | TV | TV ratio"
    )
    for row in rows:
        line = [f"`{row['rule']}`", row["drafts"], *_numbers(row), _3(row["shift"])]
        for name in ("lantern", "lantern_optimal"):
            other = row[name]
            w1 = [] if name == "lantern_optimal" else [_3(other and other["w1"])]
            if other is None:
                line += ["none", "-", *w1, "-"]
                continue
            ratio = "-" if row["rule"] == "coupled" else "inf"
            if _relaxed(other):
                ratio = f"{row['tv'] / other['tv']:.2f}"
            line += [f"`{other['rule']}`", _3(other["tv"]), *w1, ratio]
        table.append(_row(line))
    return table


def _everything(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of our rules and the lossless ones, and one of LANTERN's."""
    ours = _table(
        "rule | blind: acceptance | TV | W1 | W1 at most "
        "| coupled: acceptance | TV | W1 | W1 at most"
    )
    theirs = _table(
        "rule | published residual: acceptance | TV | W1 "
        "| optimal residual: acceptance | TV | W1"
    )
    found = {(r["rule"], r["drafts"]): r for r in rows}
    for row in rows:
        rule, line = row["rule"], [f"`{row['rule']}`"]
        if row["curve"].startswith("LANTERN"):
            if "optimal" not in row["curve"]:
                optimal = found.get((f"{rule},residual=optimal", "blind"))
                theirs.append(_row([*line, *_numbers(row), *_numbers(optimal)]))
        elif row["drafts"] == "blind":
            for how in ("blind", "coupled"):
                one = found.get((rule, how))
                line += [*_numbers(one), _3(one["shift"] if one else None)]
            ours.append(_row(line))
    return [*ours, "", *theirs]


def _words(section: tuple[str, int]) -> str:
    count = section[1]
    return f"{section[0]}, {count} {'child' if count == 1 else 'children'}"


def _table(head: str) -> list[str]:
    return [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]


def _row(line: Sequence[str]) -> str:
    return "| " + " | ".join(line) + " |"


def _3(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"


def _numbers(row: dict[str, Any] | None) -> list[str]:
    names = ("acceptance", "tv", "w1")
    return ["-"] * 3 if row is None else [_3(row[name]) for name in names]


def relaxation_plot(result: dict[str, Any]) -> bytes:
    """TV over acceptance as PNG, a panel for each setting and number of children."""
    wanted = [
        ("LANTERN, published, k=10", "blind", "LANTERN, k=10"),
        ("LANTERN++, published, k=10", "blind", "LANTERN++, k=10"),
        ("LANTERN++, optimal, k=10", "blind", "LANTERN++, optimal residual, k=10"),
        ("ours, radius", "coupled", "ours, radius, coupled"),
        ("ours, budget, k=50", "coupled", "ours, budget, k=50, coupled"),
        ("ours, radius", "blind", "ours, radius, blind"),
    ]
    rows, panels = result["rows"], []
    for section in dict.fromkeys((r["setting"], r["children"]) for r in rows):
        here = [r for r in rows if (r["setting"], r["children"]) == section]
        lossless = {(r["rule"], r["drafts"]): r for r in here}
        least = lossless[_EXACT]
        lines = []
        for curve, how, label in wanted:
            points = [r for r in here if (r["curve"], r["drafts"]) == (curve, how)]
            if how == "coupled":
                points = [least, *points]
            elif curve.startswith("LANTERN"):
                points = [lossless["rejection", "blind"], *points]
            else:  # as far as it accepts what others do without loss
                points = [r for r in points if r["acceptance"] >= least["acceptance"]]
            x, y = ([r[name] for r in points] for name in ("acceptance", "tv"))
            lines.append(Line(label, x, y, dashed=label.endswith("blind")))
        panels.append(Panel(_words(section), lines))
    return png_bytes(plot_panels(panels, "acceptance", "total variation distance"))
