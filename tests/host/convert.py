"""A saved workflow (UI format) as the prompt that the browser would send (API format)."""

from __future__ import annotations

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}


def widgets(info: dict) -> list[tuple[str, bool, bool]]:
    """A node's widgets in order: name, whether a control ("fixed", "randomize") follows in the saved values, required.

    Optional ones that came after a file was saved have no value in it.
    """
    found = []
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, options = [*info["input"][group][name], {}][:2]
            if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
                control = bool(options.get("control_after_generate"))
                found.append((name, control, group == "required"))
    return found


def to_prompt(workflow: dict, infos: dict) -> dict:
    """The prompt of a workflow without subgraphs; `infos` are the server's node schemas."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES or node.get("mode", 0) != 0:
            continue
        values, inputs = list(node.get("widgets_values", [])), {}
        for name, control, required in widgets(infos[node["type"]]):
            if values or required:
                inputs[name] = values.pop(0)
            if control:
                values.pop(0)
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                inputs[slot["name"]] = links[slot["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
