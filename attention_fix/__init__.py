"""Correct attention, heads or logits: pure tensor algorithms that know torch only."""

from .adaptive_generated_text import AdaptiveGeneratedText
from .attention_fusion import AttentionFusion
from .attention_rows import attention_rows
from .base import (
    Correction,
    Diagnosis,
    HeadCorrection,
    Residual,
    RowCorrection,
    RowView,
    TextOnly,
    Tower,
    register,
    registry,
)
from .contrast import contrast, exclude
from .correct_rows import correct_rows
from .generated_text import GeneratedText
from .guidance import guide
from .head_gain import HeadGain
from .head_guided import HeadGuided
from .iat_profile import IATProfile
from .image_boost import ImageBoost
from .informed_tokens import InformedTokens
from .profile import HeadProfile, SinkProfile
from .scale_heads import scale_heads
from .sink_diagnosis import SinkDiagnosis
from .vision_heads import VisionHeads
from .visual_sink import VisualSink
from .watchdog import repetitive

__all__ = [
    "AdaptiveGeneratedText",
    "AttentionFusion",
    "Correction",
    "Diagnosis",
    "GeneratedText",
    "HeadCorrection",
    "HeadGain",
    "HeadGuided",
    "HeadProfile",
    "IATProfile",
    "ImageBoost",
    "InformedTokens",
    "Residual",
    "RowCorrection",
    "RowView",
    "SinkDiagnosis",
    "SinkProfile",
    "TextOnly",
    "Tower",
    "VisionHeads",
    "VisualSink",
    "attention_rows",
    "contrast",
    "correct_rows",
    "exclude",
    "guide",
    "register",
    "registry",
    "repetitive",
    "scale_heads",
]
