"""Cases on whole distributions: plain decoding's must be exact, and the draws of every lossless mode must fit it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from ..families import chameleon, mgpt2
from ..families.base import IMAGE_END, IMAGE_START, ROW_END, SEPARATOR
from ..prompts import Prompt
from ..sampling import RowFinished, Sampling, generate
from ..sampling.events import MODES
from ..sampling.rules import Rules, place_after
from ..transformer import Transformer
from ..unirep import Vocabulary
from .case import Case, Mismatch, read_tokenizer, read_transformer, same
from .decoding import entropy_limits, sampling_of, vocabulary_of_numbers
from .texts import vocabulary_alone

LOSSY = ("upstream",)  # modes that do not claim plain decoding's distribution
SAMPLES = 5000
PLAIN_SAMPLES = 1000  # of plain decoding where a draw is dear: its probabilities are held exactly besides
BATCH = 50
P_LEAST = 1e-3
Joint = dict[tuple[int, ...], float]


def exact_distribution(case: Case) -> None:
    data = case.json()
    folder = case.part(data, "model", "model", "weights")
    transformer = read_transformer(folder / "model.safetensors", folder / "config.json")
    vocabulary = _vocabulary(case, data, transformer.config.vocab_size)
    atol = case.tolerance("prob_atol", 1e-5)
    for k, fixture in enumerate(data["fixtures"]):
        where = f"fixtures[{k}] {fixture.get('name', '')}"
        params, count = fixture["sampling"], fixture["n_image_tokens"]
        start = fixture["image_start_index"]
        prompt = Prompt(
            case.family.id,
            "case",
            tuple(fixture["prefix_ids"]),
            "image",
            tuple(fixture["grid_hw"]),
            open_at=start,
            entropy_top_k=entropy_limits(case, params),
            guidance_decay=case.family.guidance_decay,
        )
        decay = fixture.get("guidance_decay", params.get("guidance_decay", case.family.guidance_decay))
        sampling = sampling_of(params, upstream_exact=decay, batch=BATCH)
        sizes = tuple(vocabulary.size_of(token) for token in prompt.tokens[start + 1 : start + 3])
        same(f"{where} grid_hw", prompt.units, sizes)
        expected = {tuple(ids): p for ids, p in fixture["joint"]}
        got = joint(transformer, vocabulary, prompt, sampling, count)
        _compare(f"{where} joint", expected, got, atol)
        for i, marginal in enumerate(fixture.get("first_marginals", [])):
            told = {(token,): p for token, p in marginal}
            _compare(f"{where} first_marginals[{i}]", told, _marginal(got, i), atol)
        for mode in MODES:
            if mode not in LOSSY:
                drawn = replace(sampling, decode=mode, window=count + 1)  # a wider one sees nothing more
                _draws(transformer, vocabulary, prompt, drawn, expected, f"{where} decode {mode}")


def _vocabulary(case: Case, data: dict, size: int) -> Vocabulary:
    """The case's own tokenizer or numbers, else the published numbers of its family."""
    if "tokenizer" in data or case.has("tokenizer"):
        return vocabulary_alone(case.family, read_tokenizer(case.part(data, "tokenizer", "tokenizer")))
    family = case.family
    latents = family.latents_per_unit
    if "ids" in data:
        return vocabulary_of_numbers(data["ids"], data.get("latents_per_grid", latents), size)
    if family.id == "mgpt2":
        published, grid_0 = mgpt2.PUBLISHED, mgpt2.PUBLISHED_GRID_0
        ranges = [[mgpt2.PUBLISHED_CODE_0, mgpt2.PUBLISHED_CODE_0 + mgpt2.PUBLISHED_CODES - 1]]
    else:
        published, grid_0 = chameleon.PUBLISHED, chameleon.PUBLISHED_GRID_0
        ranges = [[chameleon.PUBLISHED_CODE_0, chameleon.PUBLISHED_CODE_0 + chameleon.CODES - 1]]
        if family.id == "pure":
            ranges.append([chameleon.PUBLISHED_SIZE, chameleon.PUBLISHED_SIZE + chameleon.CODES - 1])
    ids = {
        "image_start": published[IMAGE_START],
        "image_end": published[IMAGE_END],
        "new_line": published[ROW_END],
        "separator": published.get(SEPARATOR, -1),
        "grid_0": grid_0,
        "image_ranges": ranges,
    }
    return vocabulary_of_numbers(ids, latents, size)


@torch.inference_mode()
def joint(
    transformer: Transformer, vocabulary: Vocabulary, prompt: Prompt, sampling: Sampling, count: int
) -> Joint:
    """The probability of every run of the next `count` codes, forced tokens left out, under plain decoding."""
    paths = [((), list(prompt.tokens), 1.0, sampling.cfg)]
    for _ in range(count):
        grown = []
        for codes, tokens, p, scale in paths:
            rules = Rules(vocabulary, sampling, prompt.entropy_top_k, prompt.guidance_decay)
            rules.scale = scale  # what the steps before left
            while True:
                place = place_after(tokens, vocabulary)
                final = rules.final(place, *_scores(transformer, tokens, place, rules))
                forced = place.forced(vocabulary)
                if forced is None:
                    break
                tokens = [*tokens, forced]
            likely = final.double().softmax(-1)
            for token in likely.nonzero().flatten().tolist():
                grown.append(((*codes, token), [*tokens, token], p * likely[token].item(), rules.scale))
        paths = grown
    return {codes: p for codes, _, p, _ in paths}


def _scores(transformer: Transformer, tokens: list[int], place, rules: Rules):
    """Raw scores (V) behind `tokens`: of the whole sequence, and of the open picture alone where that counts."""
    cond = transformer.scores(transformer(torch.tensor([tokens]))[0, -1])
    if not rules.unconditional_tokens(tokens, place):
        return cond, None
    return cond, transformer.scores(transformer(torch.tensor([tokens[place.start :]]))[0, -1])


def _marginal(got: Joint, i: int) -> Joint:
    seen: Counter = Counter()
    for ids, p in got.items():
        seen[ids[i : i + 1]] += p
    return dict(seen)


def _compare(where: str, expected: Joint, got: Joint, atol: float) -> None:
    for ids in expected.keys() | got.keys():
        a, b = expected.get(ids, 0.0), got.get(ids, 0.0)
        if abs(a - b) > atol:
            raise Mismatch(f"{where} {list(ids)}: expected probability {a:.8f}, got {b:.8f}")


def _draws(
    transformer: Transformer,
    vocabulary: Vocabulary,
    prompt: Prompt,
    sampling: Sampling,
    expected: Joint,
    where: str,
) -> None:
    """Draws with the engine itself; a run of chance is given a second try with other seeds."""
    samples = SAMPLES
    if prompt.entropy_top_k is None:
        vocabulary = _narrowed(vocabulary, prompt, expected)
        sampling = replace(sampling, batch=10 * BATCH)
    elif sampling.decode == "ar":
        samples = PLAIN_SAMPLES
    for attempt in range(2):
        p = fit(transformer, vocabulary, prompt, sampling, expected, samples, attempt * samples)
        if p > P_LEAST:
            return
    raise Mismatch(f"{where}: {samples} draws do not fit the distribution, p = {p:.2e} in two tries")


def _narrowed(vocabulary: Vocabulary, prompt: Prompt, expected: Joint) -> Vocabulary:
    """The codes that can occur, and no others: a constant top-k keeps the same ones of them, in far less time."""
    given = {token for token in prompt.tokens[prompt.open_at :] if vocabulary.code_of(token) is not None}
    ids = sorted(given.union(*expected))
    return replace(vocabulary, code_ids=torch.tensor(ids))


def fit(
    transformer: Transformer,
    vocabulary: Vocabulary,
    prompt: Prompt,
    sampling: Sampling,
    expected: Joint,
    samples: int,
    seed: int,
) -> float:
    """The chance that draws from `expected` fit it as badly as the engine's do; 0 for one that cannot occur."""
    count = len(next(iter(expected)))
    given = sum(vocabulary.code_of(token) is not None for token in prompt.tokens[prompt.open_at :])
    counts: Counter = Counter()
    for first in range(0, samples, sampling.batch):
        for event in generate(transformer, vocabulary, prompt, replace(sampling, seed=seed + first)):
            if isinstance(event, RowFinished):
                codes = event.codes.flatten(1)[:, given : given + count].cpu()
                if codes.shape[1] == count:
                    counts.update(map(tuple, vocabulary.code_ids[codes].tolist()))
                    break
    return 0.0 if counts.keys() - expected.keys() else chi_square_p(counts, expected)


def chi_square_p(counts: Counter, expected: Joint) -> float:
    """The chance of a fit as bad as this one; cells that expect fewer than 5 are counted together."""
    total = sum(counts.values())
    cells = [(counts[ids], p * total) for ids, p in expected.items() if p * total >= 5]
    rest = (total - sum(c for c, _ in cells), total - sum(e for _, e in cells))
    if rest[1] > 1e-6 * total:
        cells.append(rest)
    statistic = sum((c - e) ** 2 / e for c, e in cells)
    degrees = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    if degrees == 0:
        return 1.0
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64)))
