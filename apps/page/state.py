"""What a run was asked and what it left: plain values without the model, safe to keep in a browser session."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from PIL import Image

import vlmopt
from vlmopt.analysis.ladder import Ladder
from vlmopt.measure import Measurement

TASKS = ("answer", "click", "describe")


@dataclass(frozen=True)
class Source:
    """Which model, where and in which precision; equal sources share one loaded model."""

    name: str = "tiny-qwen"
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Clip:
    """A video file, on disk under a name of our own."""

    path: str
    title: str  # what the user called it: untrusted text


@dataclass(frozen=True)
class Given:
    """What goes into the prompt."""

    images: tuple[Image.Image, ...] = ()
    clip: Clip | None = None
    title: str = ""  # untrusted where it was uploaded
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """Everything that decides a run."""

    source: Source
    policy: vlmopt.Policy
    question: str
    images: tuple[Image.Image, ...] = ()  # RGB; empty where there is a clip
    clip: Clip | None = None
    task: str = "answer"  # one of TASKS
    max_new_tokens: int = 32
    repeats: int = 1  # measured runs of each variant
    title: str = ""  # of the image, untrusted text
    rival: vlmopt.Policy | None = None  # a second policy, measured in turn with the first


@dataclass(frozen=True)
class Outcome:
    """One variant's answer and what it cost."""

    text: str  # untrusted: a model wrote it
    measurement: Measurement
    point: tuple[float, float] | None = None  # where the answer clicks, in pixels of the image as given

    @property
    def ids(self) -> tuple[int, ...]:
        """The new tokens."""
        return tuple(self.measurement.new_ids[0].tolist())

    @property
    def report(self) -> vlmopt.Report:
        return self.measurement.report


@dataclass(frozen=True)
class About:
    """The model of a run, in numbers and words."""

    name: str
    model_type: str
    parameters: int
    layers: int
    heads: int
    notes: tuple[str, ...] = ()
    units: str = "pixels"  # of coordinates in its answers


@dataclass(frozen=True)
class Run:
    """What one press of the button left."""

    id: str  # key for everything computed later from this run
    request: Request
    dense: Outcome
    optimized: Outcome
    shown: tuple[Image.Image, ...]  # the images the maps lie on: as the tower saw them, or a frame per temporal cell
    about: About
    ladder: Ladder | None = None  # what the last cut would keep at other ratios; None where it cannot tell
    notes: tuple[str, ...] = field(default=())
    rival: Outcome | None = None  # of the request's second policy

    def turned(self) -> Run:
        """Return the run as that of its second policy, for tabs that look at one.

        Raises:
            ValueError: a run of one policy.
        """
        if self.rival is None or self.request.rival is None:
            raise ValueError("this run has no second policy")
        request = replace(self.request, policy=self.request.rival, rival=self.request.policy)
        return replace(
            self, id=f"{self.id}-beside", request=request, optimized=self.rival, rival=self.optimized, ladder=None
        )
