"""What relaxed rules do to the law of one token, at how much acceptance.

Our `CoupledRelaxed` beside LANTERN, both as the library runs them: the law of the token
after a prefix is computed, not estimated, for every draft. With one child the drafts
are all listed as well, so nothing is left to chance.
"""

from jaxspec.bench.relaxation.report import relaxation_markdown, relaxation_plot
from jaxspec.bench.relaxation.sweep import measure_relaxation

__all__ = ["measure_relaxation", "relaxation_markdown", "relaxation_plot"]
