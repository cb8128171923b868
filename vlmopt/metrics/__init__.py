"""Measure what answers and captions are worth: POPE, CHAIR, the state of the text, and how sure the figures are."""

from .chair import Chair, chair
from .coco import coco_lexicon
from .intervals import Interval, McNemar, mcnemar, mean_interval, paired_difference, ratio_interval, wilson
from .lexicon import Lexicon, phrases
from .pope import Pope, is_yes, mean_of_splits, pope_fractions, pope_scores
from .synonyms import load_synonyms
from .text import TextState, text_state

__all__ = [
    "Chair",
    "Interval",
    "Lexicon",
    "McNemar",
    "Pope",
    "TextState",
    "chair",
    "coco_lexicon",
    "is_yes",
    "load_synonyms",
    "mcnemar",
    "mean_interval",
    "mean_of_splits",
    "paired_difference",
    "phrases",
    "pope_fractions",
    "pope_scores",
    "ratio_interval",
    "text_state",
    "wilson",
]
