"""Pairs of similar codes of a codebook."""

import numpy as np

from jaxspec.errors import ConfigError

# Codes that a code may be paired with: its nearest ones (IndexMark).
NEIGHBORS = 10
_ROWS = 1024  # codes whose similarities are computed at a time


def pair_codes(codebook: np.ndarray, neighbors: int = NEIGHBORS) -> np.ndarray:
    """Divides codes into pairs, so that the sum of cosine similarities is largest.

    A maximum-weight matching of the graph of nearest neighbors (IndexMark,
    arXiv 2505.14673), as large as possible; codes that it leaves out are matched among
    themselves.

    Args:
      codebook: float [K, C].
      neighbors: number of nearest neighbors of each code that are considered.

    Returns:
      int32 [K], the other code of the pair; -1 for the last code of an odd number.

    Raises:
      ConfigError: the package rustworkx is missing, or there are fewer than two codes.
    """
    codes = np.asarray(codebook, np.float64)
    if codes.ndim != 2 or len(codes) < 2:
        raise ConfigError(f"a codebook of shape {codes.shape} has no pairs")
    codes = codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
    mates = np.full(len(codes), -1, np.int32)
    left = np.arange(len(codes))
    while len(left) > 1:
        for a, b in _matching(codes[left], min(neighbors, len(left) - 1)):
            mates[left[a]], mates[left[b]] = left[b], left[a]
        left = np.flatnonzero(mates < 0)
    return mates


def is_pairing(mates: np.ndarray) -> bool:
    """Whether an array divides codes into pairs, as `pair_codes` returns them."""
    codes = np.arange(len(mates))
    some = mates >= 0
    if mates.ndim != 1 or (mates >= len(mates)).any() or (~some).sum() > 1:
        return False
    others = mates[some]
    return bool((mates[others] == codes[some]).all() and (others != codes[some]).all())


def _matching(codes: np.ndarray, neighbors: int) -> list[tuple[int, int]]:
    """Largest matching of greatest weight of the graph of nearest neighbors."""
    try:
        import rustworkx
    except ModuleNotFoundError:
        raise ConfigError(
            "watermarks need the package rustworkx; install "
            "'jaxspec-decoding[watermark]'"
        ) from None
    edges: dict[tuple[int, int], float] = {}
    for start in range(0, len(codes), _ROWS):
        similar = codes[start : start + _ROWS] @ codes.T
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf
        near = np.argpartition(-similar, neighbors - 1, axis=1)[:, :neighbors]
        for a, others in zip(rows.tolist(), near.tolist(), strict=True):
            for b in others:
                pair = (min(start + a, b), max(start + a, b))
                edges[pair] = float(similar[a, b])
    graph = rustworkx.PyGraph()
    graph.add_nodes_from(range(len(codes)))
    # Weights of the library are whole numbers.
    graph.add_edges_from([(a, b, int(1e6 * (1 + x))) for (a, b), x in edges.items()])
    found = rustworkx.max_weight_matching(
        graph, max_cardinality=True, weight_fn=int, verify_optimum=False
    )
    return sorted(found)
