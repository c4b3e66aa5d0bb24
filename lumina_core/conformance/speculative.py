"""Cases on upstream's speculative decoding, which is biased and not offered."""

from __future__ import annotations

from .case import Case, Skipped

REASON = "about the speculative decoding upstream published, which changes the distribution; that mode is not offered"


def sjd_window(case: Case) -> None:
    raise Skipped(REASON)


def sjd_accept(case: Case) -> None:
    raise Skipped(REASON)


def top_n_sigma(case: Case) -> None:
    raise Skipped(REASON)
