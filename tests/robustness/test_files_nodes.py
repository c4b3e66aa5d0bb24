"""Every node's inputs, inside a real ComfyUI: their limits, what lies beyond, wrong types, workflows from strangers."""

from __future__ import annotations

import json

import pytest

from tests.host.server import Run
from tests.nodes.test_schemas import inputs

SOURCES = {  # what a socket is given in these graphs: node, output
    "LUMINA_MODEL": ["load", 0],
    "LUMINA_PROMPT": ["prompt", 0],
    "LUMINA_TOKENS": ["encode", 0],
    "IMAGE": ["image", 0],
    "MASK": ["mask", 0],
}
OUTSIDE = (
    "../x",
    "/etc/passwd",
    "..\\..\\x",
    "C:\\x",
    "owner/../../x",
    "\0",
    "x" * 5000,
    "~",
    "file:///x",
    "owner//cut",
)
WRONG = {
    "INT": ("x", None, [], {}, 10**40),
    "FLOAT": ("x", None, {}),
    "BOOLEAN": (),
    "STRING": (),
    "COMBO": ("x", -1, {}),
}


def step(kind: str, /, **values) -> dict:
    return {"class_type": kind, "inputs": values}


BASE = {
    "load": step("LuminaMGPTLoadModel", model="tiny", precision="auto"),
    "image": step("EmptyImage", width=40, height=40, batch_size=1, color=255),
    "mask": step("SolidMask", value=1.0, width=40, height=40),
    "encode": step("LuminaMGPTEncode", model=["load", 0], image=["image", 0], fit="crop"),
    "prompt": step(
        "LuminaMGPTPrompt",
        **{"model": ["load", 0], "text": "a", "task": "text_to_image", "width": 32, "height": 32},
        size_mode="as given",
    ),
}


def graph(schema: dict, node: str, **changes) -> dict:
    """The node with its required inputs as they are by default, sockets joined, and a place for its first output."""
    values = {}
    for name, kind, group, options in inputs(schema):
        if kind in SOURCES:
            values |= {name: SOURCES[kind]} if group == "required" else {}
        elif kind in ("INT", "FLOAT", "BOOLEAN", "COMBO", "STRING") and group == "required":
            values[name] = options.get("default", (options.get("options") or [""])[0])
            values[name] = "a red circle" if kind == "STRING" else values[name]
            values[name] = "tiny" if name == "model" else values[name]
    prompt = json.loads(json.dumps(BASE)) | {"node": step(node, **values | changes)}
    kind = "SaveImage" if schema["output"][0] == "IMAGE" else "PreviewAny"
    where = (
        {"images": ["node", 0], "filename_prefix": "x"} if kind == "SaveImage" else {"source": ["node", 0]}
    )
    return prompt | {"end": step(kind, **where)}


def posted(comfy, prompt: dict) -> tuple[int, dict]:
    """Status and reply to a prompt; one that was taken is thrown out of the queue again."""
    status, body = comfy.get_bytes("/prompt", {"prompt": prompt})
    comfy.get_bytes("/queue", {"clear": True})
    return status, json.loads(body)


@pytest.fixture(scope="module")
def ours(comfy) -> dict:
    return {name: schema for name, schema in comfy.info.items() if name.startswith("LuminaMGPT")}


def test_what_lies_beyond_the_limits_of_an_input_is_refused_before_anything_runs(
    comfy, ours, record_property
):
    taken, tried = [], 0
    for node, schema in ours.items():
        for name, kind, _, options in inputs(schema):
            odd = list(WRONG.get(kind, ()))
            if kind in ("INT", "FLOAT"):
                odd += [options["min"] - 1, options["max"] * 2 + 1]
            if kind in SOURCES:
                odd += [["load", 7], ["nobody", 0]]
                odd += [["image", 0]] if kind != "IMAGE" else [["load", 0]]
            for value in odd:
                tried += 1
                status, reply = posted(comfy, graph(schema, node, **{name: value}))
                if status == 200:
                    taken.append(f"{node}.{name} = {value!r}")
                else:
                    assert status == 400, f"{node}.{name} = {value!r}: {status} {reply}"
    assert not taken
    record_property("cases", tried)


def test_names_in_a_workflow_stay_in_the_model_folders(comfy, ours, record_property):
    for name in OUTSIDE:
        for node, field in (("LoadModel", "model"), ("TextToImage", "model"), ("LoadLora", "lora")):
            status, reply = posted(
                comfy, graph(ours[f"LuminaMGPT{node}"], f"LuminaMGPT{node}", **{field: name})
            )
            assert status == 400, f"{node} takes {name!r}"
            assert "root:" not in json.dumps(reply)
    record_property("cases", len(OUTSIDE) * 3)


def allowed(run: Run) -> bool:
    """Whether a run made its result, or ended in a line for the user."""
    return run.status == "success" or (run.status == "error" and run.kind.startswith("Lumina-mGPT"))


LARGE = {
    "batch",
    "width",
    "height",
    "resolution",
    "scale",
    "candidates",
    "count",
    "max_tokens",
}  # of work: low end only


@pytest.mark.slow
@pytest.mark.parametrize("end", ["min", "max"])
def test_at_the_limits_every_node_runs_or_says_why_not(comfy, ours, end, record_property):
    """All numbers of a node at one end of their ranges at once, on a checkpoint that has the node's task."""
    odd, ran = [], 0
    for node, schema in ours.items():
        model = (
            "pure"
            if "Restore" in node
            else "mgpt1"
            if any(w in node for w in ("Chat", "Segment", "Detect"))
            else "tiny"
        )
        numbers = {
            name: options["min" if name in LARGE else end]
            for name, kind, _, options in inputs(schema)
            if kind in ("INT", "FLOAT")
        }
        if any(
            kind not in (*SOURCES, "INT", "FLOAT", "COMBO", "STRING", "BOOLEAN") and group == "required"
            for _, kind, group, _ in inputs(schema)
        ):
            continue
        prompt = graph(schema, node, **numbers)
        prompt["load"]["inputs"]["model"] = model
        run = comfy.run(prompt)
        ran += 1
        if not allowed(run) and run.status != "refused":
            odd.append(f"{node}: {run.status} {run.kind}: {run.error[:200]}")
    assert not odd
    assert ran > 10
    record_property("cases", ran)
