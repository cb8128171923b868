"""Generated images with questions: scenes of coloured shapes and user-interface screens, deterministic per seed."""

from .base import Question, Thing, World
from .scenes import scene
from .screens import screen

__all__ = ["Question", "Thing", "World", "scene", "screen"]
