"""Everything that a stranger's file can be given to, by name."""

from __future__ import annotations

from tests.robustness import of_pickles, of_pictures, of_texts, of_weights

PARTS = (of_weights, of_texts, of_pickles, of_pictures)
TARGETS = {target.name: target for part in PARTS for target in part.TARGETS}
