"""The nodes, in menu order, and the extension that hands them to ComfyUI."""

from .best import BestOf
from .chat import ChatTurn
from .decode import Decode, Encode
from .dense import Depth, Detect, Edges, Normals, Pose, Segment, SegmentsToMasks
from .edit import Control, Edit, ImagePair, Subject
from .host import ComfyExtension
from .load import LoadModel
from .lora import LoadLora
from .picture import TextToImage
from .prompt import MakePrompt
from .restore import Restore
from .sample import Sampler

NODES = (
    *(LoadModel, MakePrompt, Sampler, Decode, Encode, TextToImage),
    *(Edit, Control, Subject, ImagePair),
    *(Depth, Segment, Normals, Pose, Edges, Detect, SegmentsToMasks),
    *(ChatTurn, Restore, BestOf, LoadLora),
)


class LuminaMGPT(ComfyExtension):
    async def get_node_list(self):
        return list(NODES)


async def comfy_entrypoint() -> LuminaMGPT:
    return LuminaMGPT()
