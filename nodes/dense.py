"""Dense prediction: a picture to its maps, which lie on it pixel for pixel; boxes; and a segmentation to masks."""

from __future__ import annotations

from ..lumina_core import InputError, masks_of, to_mask
from . import jobs
from .answers import predict
from .host import for_output, io, schema, watched
from .sockets import seed_input, task_image_input, task_inputs, task_model_socket


def map_schema(
    node: str, what: str, description: str, aliases: list[str], outputs: list[io.Output]
) -> io.Schema:
    """The schema of a node that draws the map `what` of a picture."""
    return schema(
        node_id=f"LuminaMGPT{node}",
        display_name=f"Lumina-mGPT {node}",
        description=f"{description} The map has the size of the image and lies on it pixel for pixel.",
        search_aliases=["lumina", *aliases],
        inputs=[task_model_socket(what), task_image_input(), seed_input(), *task_inputs()],
        outputs=outputs,
    )


def map_output(name: str, tooltip: str) -> io.Output:
    return io.Image.Output(display_name=name, tooltip=tooltip)


class Depth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return map_schema(
            "Depth",
            "depth",
            "Draws how far everything in a picture is.",
            ["depth map", "depth estimation"],
            [
                map_output("depth", "The depth map in grey: brighter is nearer."),
                io.Mask.Output(display_name="mask", tooltip="The same as a mask, 0 (far) to 1 (near)."),
            ],
        )

    @classmethod
    def execute(cls, model, image, seed, **settings) -> io.NodeOutput:
        depth = jobs.placed(model, predict(model, "depth", image, seed, **settings))
        return io.NodeOutput(depth, to_mask(depth))


class Segment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return map_schema(
            "Segment",
            "segment",
            "Paints what belongs together in one colour. Segments to Masks makes masks of it.",
            ["segmentation", "semantic segmentation"],
            [map_output("segmentation", "The segmentation picture, each kind of thing in its colour.")],
        )

    @classmethod
    def execute(cls, model, image, seed, **settings) -> io.NodeOutput:
        return io.NodeOutput(jobs.placed(model, predict(model, "segment", image, seed, **settings)))


class Normals(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return map_schema(
            "Normals",
            "normals",
            "Draws which way every surface in a picture faces.",
            ["normal map", "surface normal"],
            [map_output("normals", "The normal map: red to the right, green up, blue to the viewer.")],
        )

    @classmethod
    def execute(cls, model, image, seed, **settings) -> io.NodeOutput:
        return io.NodeOutput(jobs.placed(model, predict(model, "normals", image, seed, **settings)))


class Pose(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return map_schema(
            "Pose",
            "pose",
            "Draws the joints and limbs of everyone in a picture.",
            ["openpose", "human pose", "keypoints"],
            [map_output("pose", "The pose map: coloured joints and limbs on black.")],
        )

    @classmethod
    def execute(cls, model, image, seed, **settings) -> io.NodeOutput:
        return io.NodeOutput(jobs.placed(model, predict(model, "pose", image, seed, **settings)))


class Edges(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTEdges",
            display_name="Lumina-mGPT Edges",
            description="Draws the edges in a picture, sharp (canny) or soft (hed). The map has the size of the image "
            "and lies on it pixel for pixel.",
            search_aliases=["lumina", "canny", "hed", "edge map", "lineart"],
            inputs=[
                task_model_socket("canny and hed", "Lumina-mGPT-2.0-Omni"),
                task_image_input(),
                io.Combo.Input(
                    "kind",
                    options=["canny", "hed"],
                    default="canny",
                    tooltip="canny: thin, sharp lines. hed: soft lines of different strength.",
                ),
                seed_input(),
                *task_inputs(),
            ],
            outputs=[map_output("edges", "The edge map, white on black.")],
        )

    @classmethod
    def execute(cls, model, image, kind, seed, **settings) -> io.NodeOutput:
        return io.NodeOutput(jobs.placed(model, predict(model, kind, image, seed, **settings)))


class Detect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTDetect",
            display_name="Lumina-mGPT Detect",
            description="Finds things by name and draws a box around each; the boxes also come as JSON and as a mask.",
            search_aliases=["lumina", "detection", "bounding box", "grounding", "find object"],
            inputs=[
                task_model_socket("detect"),
                task_image_input(),
                io.String.Input(
                    "text",
                    default="",
                    placeholder="what to find",
                    tooltip="What to find, in a word or two: 'dog', 'red circle'.",
                ),
                seed_input(),
                *task_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The image with a frame around all that was found."
                ),
                io.String.Output(
                    display_name="boxes",
                    tooltip="JSON, for each picture: width, height and boxes, each with its label and [left, top, "
                    "right, bottom] in pixels of the image.",
                ),
                io.Mask.Output(display_name="mask", tooltip="1 inside the boxes, 0 outside."),
                io.Image.Output(
                    display_name="drawn", tooltip="What the model itself drew, which the boxes are read from."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, image, text, seed, **settings) -> io.NodeOutput:
        answers = predict(model, "detect", image, seed, text, **settings)
        return io.NodeOutput(*jobs.found(model, answers, text.strip()), jobs.placed(model, answers))


class SegmentsToMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LuminaMGPTSegmentsToMasks",
            display_name="Lumina-mGPT Segments to Masks",
            description="Makes one mask of every colour in a segmentation picture, largest area first, and tells "
            "colours apart that the image tokenizer has blurred.",
            search_aliases=["lumina", "segmentation to mask", "color to mask", "split colors"],
            inputs=[
                io.Image.Input(
                    "segmentation",
                    tooltip="A segmentation picture from Segment, or a batch; a colour is one segment in all of them.",
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=999,
                    tooltip="Which segment comes out as 'mask': 0 is the largest. 'segments' lists them.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=64.0,
                    min=16.0,
                    max=441.0,
                    step=1.0,
                    tooltip="Colours nearer to each other than this are one (distance in red, green and blue of 0 to "
                    "255). 64 suits most pictures; 30 for pictures with many similar colours.",
                ),
                io.Float.Input(
                    "min_area",
                    default=0.005,
                    min=0.0,
                    max=0.99,
                    step=0.001,
                    tooltip="Smaller segments join what they touch: a share of the picture, 0.005 is half a percent.",
                ),
                io.Boolean.Input(
                    "drop_black",
                    default=False,
                    tooltip="Leaves black out, which stands for what has no name.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="One mask for each colour, largest area first, equal areas by colour. Nodes behind it run "
                    "once for each.",
                ),
                io.Mask.Output(display_name="mask", tooltip="The mask that index names, alone."),
                io.String.Output(
                    display_name="segments",
                    tooltip="JSON, in the order of the masks: index, color and area (share of the picture) of each.",
                ),
            ],
        )

    @classmethod
    def execute(cls, segmentation, index, **settings) -> io.NodeOutput:
        masks, listed = masks_of(segmentation, watched=watched, **settings)
        if not 0 <= index < len(masks):
            raise InputError(f"index is {index}; there are {len(masks)} segments, 0 to {len(masks) - 1}.")
        masks = [for_output(mask) for mask in masks]
        return io.NodeOutput(masks, masks[index], listed)
