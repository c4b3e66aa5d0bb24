"""Chat: questions and answers over several turns, with pictures in any of them."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..lumina_core import Answered, Chat, Sampling, from_tensor
from . import jobs
from .host import io, nothing, schema, show_on_node
from .sockets import WINDOWS, LuminaChat, decode_input, model_socket, seed_input, window_input

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
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Spread of the random draws. 1 is the published value; 0 always takes the likeliest "
                    "token.",
                ),
                io.Int.Input(
                    "text_top_k",
                    default=5,
                    min=0,
                    max=65536,
                    tooltip="Only this many of the likeliest text tokens may be drawn. 5 is the published "
                    "value; 1 gives the same answer for every seed.",
                ),
                io.Int.Input(
                    "image_top_k",
                    default=2000,
                    min=0,
                    max=16384,
                    tooltip="The same for the tokens of pictures in the answer. 2000 is the published value; 0 "
                    "allows all.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance of pictures in the answer; text has none. 1, the published value, is "
                    "without; 3 to 4 draws closer to the words.",
                ),
                io.Int.Input(
                    "max_tokens",
                    default=2048,
                    min=1,
                    max=65536,
                    tooltip="The longest answer, in tokens. A sentence is about 20, a picture of 512x512 pixels "
                    "1060.",
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
    def execute(cls, model, question, chat=None, window="auto", **rest) -> io.NodeOutput:
        given = [rest.pop(name) for name in IMAGES if rest.get(name) is not None]
        images = [picture for batch in given for picture in from_tensor(batch)]
        rest = {name: value for name, value in rest.items() if name not in IMAGES}
        chat, prompt = jobs.ask(model, chat or Chat(model.model.family.id), question, images)
        answer, live = Answered(model.model), LiveText()
        for event in model.draw(prompt, Sampling(window=WINDOWS[window], **rest)):
            if answer.note(event):
                live.show(lambda: answer.text)
        show_on_node(answer.text)
        pictures = jobs.decode(model, answer.pictures) if answer.pictures else nothing()
        return io.NodeOutput(answer.text, pictures, chat.answered(answer))
