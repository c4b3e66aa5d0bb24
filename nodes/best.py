"""Best of N: candidates ranked by a score."""

from __future__ import annotations

from ..lumina_core import (
    InputError,
    PictureFinished,
    Ranking,
    best,
    check_candidates,
    given_scores,
    question_of,
)
from . import jobs
from .host import io, schema, show_on_node
from .sockets import (
    LuminaModel,
    LuminaPrompt,
    LuminaTokens,
    decode_input,
    drawing,
    guidance_inputs,
    model_socket,
    seed_input,
    window_input,
)

SCORES = LIKELIHOOD, ANSWER, GIVEN = "likelihood", "answer", "given"


def single(name: str, values: list):
    """The one value that came in as a list, or an `InputError` where there is another number of them."""
    if len(values) != 1:
        raise InputError(
            f"{name} has {len(values)} values; Best Of takes one, and lists only as tokens and scores. Connect one "
            "value, and give each of several a Best Of of its own."
        )
    return values[0]


class BestOf(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTBestOf",
            display_name="Lumina-mGPT Best Of",
            description="Draws several candidates of one prompt side by side, scores them, and passes the best "
            "on, best first. Every score can be seen.",
            search_aliases=["best of n", "rank", "score", "inference-time scaling", "candidates"],
            is_input_list=True,
            inputs=[
                model_socket(),
                LuminaPrompt.Input("prompt", tooltip="A prompt made with the same model."),
                seed_input(),
                *guidance_inputs(),
                decode_input(),
                io.Int.Input(
                    "candidates",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Pictures to choose from, drawn side by side; 4 to 16 are useful. Each needs memory "
                    "for its tokens as in the Sampler's batch.",
                ),
                io.Combo.Input(
                    "score",
                    options=list(SCORES),
                    default=LIKELIHOOD,
                    tooltip="likelihood: the model's own mean log-probability of the picture given the prompt. "
                    "answer: how surely the model, or judge, answers the question with yes, 0 to 1. given: the "
                    "numbers connected to scores.",
                ),
                io.String.Input(
                    "question",
                    default="",
                    tooltip="For score answer: a question that a good picture answers with yes, such as 'Does the "
                    "picture show a red circle?'. Not used by the other scores.",
                ),
                io.Int.Input(
                    "keep",
                    default=1,
                    min=0,
                    max=64,
                    tooltip="How many of the best go on as tokens, best first; 0 passes all on. All scores are given "
                    "in any case.",
                ),
                LuminaTokens.Input(
                    "tokens",
                    optional=True,
                    tooltip="Candidates drawn before, from a Sampler with batch: they are ranked and nothing is "
                    "drawn.",
                ),
                io.Float.Input(
                    "scores",
                    default=0.0,
                    min=-1e9,
                    max=1e9,
                    force_input=True,
                    optional=True,
                    tooltip="For score given: one number for each of the candidates connected to tokens, as a "
                    "list, from any node that rates pictures; the highest is the best.",
                ),
                LuminaModel.Input(
                    "judge",
                    optional=True,
                    tooltip="For score answer: the model that is asked, one that can chat (Lumina-mGPT 1.0). "
                    "Without one the model itself is asked.",
                ),
                window_input(),
            ],
            outputs=[
                LuminaTokens.Output(
                    display_name="tokens", tooltip="The best candidates, best first, for Decode."
                ),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="All scores as a list, best first."
                ),
                io.String.Output(display_name="table", tooltip="Rank, candidate and score, a line each."),
            ],
        )

    @classmethod
    def execute(cls, tokens=None, scores=(), **lists) -> io.NodeOutput:
        one = {name: single(name, values) for name, values in lists.items()}
        names = ("model", "prompt", "score", "question", "keep")
        model, prompt, score, question, keep = (one.pop(name) for name in names)
        judge = one.pop("judge", model)
        sampling = drawing(model, prompt.task, batch=one.pop("candidates"), **one)
        if score not in SCORES:  # a value that came over a link is not checked by the host
            raise InputError(f"score is '{score}'; it may be {', '.join(SCORES)}.")
        if score == ANSWER:
            question = question_of(judge.model, question)
        grids = None if tokens is None else [grid for batch in tokens for grid in batch]
        if score == GIVEN:
            values = given_scores(list(scores), grids)
        if grids is None:
            events = model.draw(prompt, sampling)
            grids = [event.grid for event in events if isinstance(event, PictureFinished)]
        check_candidates(grids)
        if score == LIKELIHOOD:
            values = jobs.likelihoods(model, prompt, grids)
        elif score == ANSWER:
            values = jobs.agreements(judge, question, jobs.pictures(model, prompt, grids))
        ranking = Ranking(tuple(values))
        table = ranking.table(score, None if tokens else sampling.seed)
        show_on_node(table)
        order = ranking.order
        return io.NodeOutput(best(grids, order, keep), [values[i] for i in order], table)
