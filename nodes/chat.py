"""Chat: questions and answers over several turns, with pictures in any of them."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..lumina_core import Answered, AnswerFinished, Chat, from_tensor
from . import jobs
from .host import CUT_SHORT, io, nothing, schema, show_on_node
from .sockets import (
    LuminaChat,
    cfg_input,
    decode_input,
    drawing,
    image_top_k_input,
    model_socket,
    seed_input,
    temperature_input,
    text_top_k_input,
    window_input,
)

IMAGES = ("image", "image_2", "image_3", "image_4")


class LiveText:
    """Text on the node that runs, while it is written: a few times a second, whole at the end."""

    PAUSE = 0.2  # seconds

    def __init__(self):
        self.next = 0.0

    def show(self, text: Callable[[], str]) -> None:
        """Shows a text, which is only made when it is time for one."""
        if time.monotonic() >= self.next:
            show_on_node(text())
            self.next = time.monotonic() + self.PAUSE


class ChatTurn(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTChat",
            display_name="Lumina-mGPT Chat",
            description="Asks Lumina-mGPT 1.0 a question, about pictures or without. The answer is text and may hold "
            "pictures. Connect chat to the next Chat node to go on in the same conversation.",
            search_aliases=["lumina chat", "vqa", "ask", "caption", "describe image", "multi-view"],
            inputs=[
                model_socket(),
                io.String.Input(
                    "question",
                    multiline=True,
                    dynamic_prompts=False,
                    placeholder="What is in the picture?",
                    tooltip="What to ask or tell. <|image|> in it says where a connected picture belongs; "
                    "without one they stand before the question.",
                ),
                seed_input(),
                temperature_input(),
                text_top_k_input(),
                image_top_k_input(),
                cfg_input(),
                io.Int.Input(
                    "max_tokens",
                    default=2048,
                    min=1,
                    max=65536,
                    tooltip="The longest answer, in tokens: 2048 is published. A sentence is about 20, a picture of "
                    "512x512 pixels 1,060 and one of 768x768 pixels 2,356; for several pictures raise it.",
                ),
                decode_input(),
                LuminaChat.Input(
                    "chat",
                    optional=True,
                    tooltip="The conversation so far, from another Chat node made with the same model.",
                ),
                *(
                    io.Image.Input(
                        name,
                        optional=True,
                        tooltip="A picture that the question is about, of any size; a batch counts as several "
                        "pictures.",
                    )
                    for name in IMAGES
                ),
                window_input(),
            ],
            outputs=[
                io.String.Output(display_name="answer", tooltip="The text of the answer."),
                io.Image.Output(
                    display_name="image",
                    is_output_list=True,
                    tooltip="Pictures in the answer; neighbours of one size share a batch. Nodes behind it do not run "
                    "when the answer holds none.",
                ),
                LuminaChat.Output(
                    display_name="chat", tooltip="The conversation with this turn, for the next Chat node."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, question, chat=None, **rest) -> io.NodeOutput:
        given = [rest.pop(name) for name in IMAGES if rest.get(name) is not None]
        images = [picture for batch in given for picture in from_tensor(batch)]
        rest = {name: value for name, value in rest.items() if name not in IMAGES}
        chat, prompt = jobs.ask(model, chat or Chat(model.model.family.id), question, images)
        answer, live, ended = Answered(model.model), LiveText(), ""
        for event in model.draw(prompt, drawing(model, "chat", **rest)):
            if answer.note(event):
                live.show(lambda: answer.text)
            if isinstance(event, AnswerFinished) and event.reason in CUT_SHORT:
                ended = f"(The answer {CUT_SHORT[event.reason]}.)"
        show_on_node("\n".join(filter(None, (answer.text, ended))) or "(no words)")
        pictures = jobs.decode(model, answer.pictures) if answer.pictures else nothing()
        return io.NodeOutput(answer.text, pictures, chat.answered(answer))
