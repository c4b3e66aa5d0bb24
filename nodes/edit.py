"""Pictures from pictures: edits, pictures that follow a map, subjects in new scenes, and pictures with their maps."""

from __future__ import annotations

from ..lumina_core import task_of
from . import jobs
from .answers import predict
from .host import io, schema
from .sockets import (
    OWN_PANEL_SIDE,
    LuminaTokens,
    batch_input,
    drawing,
    drawing_inputs,
    fit_input,
    keep_size_input,
    optional,
    seed_input,
    size_inputs,
    task_image_input,
    task_inputs,
    task_model_socket,
    text_input,
)

MAPS = ["depth", "canny", "hed", "pose"]
PICTURES = "The pictures, those of the first image first."


class Edit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTEdit",
            display_name="Lumina-mGPT Edit",
            description="Changes a picture as it is told in words. For several edits, one after the other, connect "
            "image and tokens of one Edit to the next.",
            search_aliases=["lumina", "edit image", "instruct", "inpaint", "denoise"],
            inputs=[
                task_model_socket("edit"),
                task_image_input("The picture to change, or a batch of them, of any size."),
                text_input("what to change", "What to change, in words: 'Make the circle green.'"),
                seed_input(),
                *task_inputs(
                    keep_size_input(),
                    optional(batch_input()),
                    io.Combo.Input(
                        "task",
                        options=["edit", "denoise"],
                        default="edit",
                        optional=True,
                        tooltip="edit: does what the text says. denoise: asks to change nothing, which cleans the "
                        "image tokenizer's noise away; the text is not used. 1.0 only.",
                    ),
                    LuminaTokens.Input(
                        "tokens",
                        optional=True,
                        tooltip="The tokens of an earlier Edit whose picture is 'image': the picture goes on as it was "
                        "drawn, without a loss by encoding it again.",
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip=PICTURES),
                LuminaTokens.Output(display_name="tokens", tooltip="The same as tokens, for the next Edit."),
            ],
        )

    @classmethod
    def execute(
        cls, model, image, text, seed, task="edit", tokens=None, keep_size=True, **settings
    ) -> io.NodeOutput:
        answers = predict(model, task, image, seed, text, tokens=tokens or (), **settings)
        return io.NodeOutput(jobs.placed(model, answers, keep_size), [grid for _, grid in answers])


class Control(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTControl",
            display_name="Lumina-mGPT Control",
            description="Draws a picture that follows a map: its depth, its edges or its poses.",
            search_aliases=["lumina", "controlnet", "depth to image", "condition to image"],
            inputs=[
                task_model_socket("control"),
                task_image_input("The map, or a batch of maps, of any size."),
                text_input(),
                io.Combo.Input(
                    "kind",
                    options=MAPS,
                    default="depth",
                    tooltip="What the map shows. 1.0 sees that for itself and takes any of them, 2.0 must be told.",
                ),
                seed_input(),
                *task_inputs(keep_size_input(), optional(batch_input())),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip=PICTURES)],
        )

    @classmethod
    def execute(cls, model, image, text, kind, seed, keep_size=True, **settings) -> io.NodeOutput:
        answers = predict(model, task_of(model.model, "control", kind), image, seed, text, **settings)
        return io.NodeOutput(jobs.placed(model, answers, keep_size))


class Subject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTSubject",
            display_name="Lumina-mGPT Subject",
            description="Draws the thing of one picture in another scene.",
            search_aliases=["lumina", "subject driven", "reference image", "personalization"],
            inputs=[
                task_model_socket("subject or subject_described", "Lumina-mGPT-2.0-Omni"),
                task_image_input(
                    "The picture of the thing, or a batch of them; fitted to the size by 'fit'."
                ),
                text_input("the new scene", "The new scene, in words: 'on a beach at sunset'."),
                io.String.Input(
                    "subject",
                    default="",
                    placeholder="what the thing is",
                    tooltip="What the thing is, in a few words: 'a red clock'. Empty: the published words, which name "
                    "none.",
                ),
                *size_inputs(OWN_PANEL_SIDE),
                seed_input(),
                fit_input("crop"),
                optional(batch_input()),
                *drawing_inputs(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip=PICTURES)],
        )

    @classmethod
    def execute(
        cls, model, image, text, subject, width, height, seed, fit="crop", **settings
    ) -> io.NodeOutput:
        subject = subject.strip()
        task = task_of(model.model, "subject", subject=subject)
        how = {"size": (width, height), "subject": subject, "fit": fit}
        answers = predict(model, task, image, seed, text, **how, **settings)
        return io.NodeOutput(jobs.placed(model, answers, keep_size=False))


class ImagePair(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTImagePair",
            display_name="Lumina-mGPT Image Pair",
            description="Draws a picture of the words together with its depth, edges or poses, which fit each other.",
            search_aliases=["lumina", "image and depth", "dual panel", "picture with map"],
            inputs=[
                task_model_socket("pairs", "Lumina-mGPT-2.0 and 2.0-Omni"),
                text_input(),
                io.Combo.Input(
                    "kind", options=MAPS, default="depth", tooltip="Which map is drawn beside the picture."
                ),
                *size_inputs(OWN_PANEL_SIDE),
                seed_input(),
                optional(batch_input()),
                *drawing_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The pictures, as one batch."),
                io.Image.Output(display_name="map", tooltip="The map of each picture, in the same order."),
            ],
        )

    @classmethod
    def execute(cls, model, text, kind, width, height, seed, template="", **settings) -> io.NodeOutput:
        task = task_of(model.model, "pair", kind)
        prompt = jobs.prompt(model, text, task, (width, height), [], template=template)
        picture, drawn_map = jobs.panels(model, prompt, drawing(model, task, seed, **settings))
        return io.NodeOutput(picture, drawn_map)
