"""For `environment.sh`: lets torchvision's build for CUDA be imported beside a torch for CPUs.

Its own operators cannot be loaded there, and importing it fails where it describes two of them. Declaring these first
is enough for everything that runs none of them. Python imports this file at start, through a .pth file.
"""

import importlib.abc
import sys

DECLARED = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class Declare(importlib.abc.MetaPathFinder):
    """Finds nothing; declares what is missing just before torchvision describes it."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            import torch

            for operator, schema in DECLARED.items():
                if not hasattr(torch.ops.torchvision, operator):
                    torch.library.define(f"torchvision::{operator}", schema)
        return None


sys.meta_path.insert(0, Declare())
