"""Output distribution of lossy verifiers at one position, over acceptance.

Compares `CoupledRelaxed` with LANTERN, both as implemented in `speculative.verify`.
The distribution of the emitted token after a prefix is computed exactly for each draft.
With one child per node all drafts are enumerated, so that no sampling is involved.
"""

from docs.studies.relaxation.report import relaxation_markdown, relaxation_plot
from docs.studies.relaxation.sweep import measure_relaxation

__all__ = ["measure_relaxation", "relaxation_markdown", "relaxation_plot"]
