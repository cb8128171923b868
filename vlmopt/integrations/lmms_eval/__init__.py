"""vlmopt as a model of lmms-eval: `--model vlmopt --model_args pretrained=...,policy=...`.

lmms-eval finds `manifest` through the entry point group `lmms_eval.models`. Nothing of it is imported before it asks.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Return a `lmms_eval.models.registry_v2.ModelManifest`: the name, and a class for each of the two interfaces."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="vlmopt",
        simple_class_path="vlmopt.integrations.lmms_eval.model.Simple",
        chat_class_path="vlmopt.integrations.lmms_eval.model.Chat",
    )
