"""Random draft trees."""

from hypothesis import strategies as st

from jaxspec.speculative.trees.tree import Tree


@st.composite
def trees(draw, max_nodes=12):
    """Random trees with random, gap-free ranks."""
    parents, ranks, children = [-1], [0], [0]
    for n in range(1, draw(st.integers(1, max_nodes))):
        parent = draw(st.integers(0, n - 1))
        parents.append(parent)
        ranks.append(children[parent])
        children[parent] += 1
        children.append(0)
    return Tree(tuple(parents), tuple(ranks))
