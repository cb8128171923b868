"""From a request to a run: dense and with the policy, measured in turn, under the model's lock."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st
import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList

import vlmopt
from vlmopt.analysis.ladder import ladder
from vlmopt.apps.page.jobs import Job, Stopped, watched
from vlmopt.apps.page.models import Progress, held
from vlmopt.apps.page.session import current
from vlmopt.apps.page.state import About, Outcome, Request, Run, Source
from vlmopt.checkpoints import bundled
from vlmopt.evaluation.prompts import POINT_PROMPTS
from vlmopt.families import click_units
from vlmopt.frames import load_video
from vlmopt.loading import Loaded
from vlmopt.measure import Measurement, measure
from vlmopt.metrics.clicks import Point, clicked
from vlmopt.prompt import as_seen, image_prompt, placed_for, video_prompt

WARMUP = 1
MEMORY = 1  # `measure` counts memory in a round of its own

__all__ = ["Prompt", "Stopped", "Worker", "asked", "perform", "prepared", "units_of"]


@dataclass(frozen=True)
class Prompt:
    """A request as model inputs."""

    inputs: dict[str, Any]  # for `model.generate(**inputs)` and `model(**inputs)`, on the model's device
    shown: tuple[Image.Image, ...]  # what `vlmopt.overlay.overlay` draws on
    notes: tuple[str, ...] = ()
    resized: tuple[int, int] | None = None  # (width, height) of the first image behind the processor, if it says so


@dataclass(frozen=True)
class Worker:
    """Run functions on one loaded model, never two at a time. Nothing is loaded before it is needed."""

    source: Source

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> Any:
        """Call `function(model, processor, *args, progress=...)` in this thread, under the model's lock.

        What the function gets as `progress(fraction, text)` raises `Stopped` once `stop` is set, so calling it between
        steps is all that it takes to be stoppable. The function must leave the model as it found it.
        """

        def tell(fraction: float, text: str) -> None:
            if stop is not None and stop.is_set():
                raise Stopped
            if progress is not None:
                progress(fraction, text)

        with held(self.source).alone(tell) as loaded:
            return function(loaded.model, loaded.processor, *args, progress=tell)

    def once(self, run: Run, key: str, label: str, function: Callable[..., Any], *args: Any) -> Any:
        """Draw a button `label` that starts `call(function, *args)` in a thread; return the result, or None.

        While it works there is a progress bar with a Stop button in its place, afterwards the result is kept in the
        session under (run.id, key), also beyond a reload; an error becomes a sentence with the button to try again.
        """
        state = current().computed
        name = f"{run.id}-{key}"
        found = state.get(name)
        if found is not None and found.done.is_set() and found.error is None:
            return found.result
        if found is not None and not found.done.is_set():
            watched(found, name)
            return None
        if st.button(label, key=f"start-{name}"):
            holder = held(self.source)  # in the session's own thread, where Streamlit's cache belongs

            def work(progress: Progress) -> Any:
                with holder.alone(progress) as loaded:
                    return function(loaded.model, loaded.processor, *args, progress=progress)

            state[name] = Job(work)
            st.rerun()
        if found is not None:
            st.warning(found.error)
        return None


def start(request: Request) -> Job:
    """Start a job whose result is a `Run`."""
    holder = held(request.source)

    def work(progress: Progress) -> Run:
        with holder.alone(progress) as loaded:
            return perform(loaded, request, progress)

    return Job(work)


def perform(loaded: Loaded, request: Request, progress: Progress) -> Run:
    """Compute everything the main page shows of a request; stop between two tokens when `progress` raises."""
    model, processor = loaded.model, loaded.processor
    variants = {"dense": vlmopt.Policy(), "optimized": request.policy}
    if request.rival is not None:
        variants["beside"] = request.rival
    for policy in variants.values():
        with vlmopt.optimized(model, policy):
            pass  # a policy that cannot work on this model is refused here, before anything is measured
    progress(0.02, "Reading the image" if request.clip is None else "Reading the video")
    prompt = prepared(model, processor, request)
    progress(0.05, "Choosing tokens")
    beat = Beat(progress, tuple(variants), WARMUP + request.repeats + MEMORY, request.max_new_tokens)
    generate = {"stopping_criteria": StoppingCriteriaList([beat])}
    rungs = ladder(model, prompt.inputs, request.policy)
    measured = measure(
        model,
        prompt.inputs,
        variants,
        repeats=request.repeats,
        warmup=WARMUP,
        max_new_tokens=request.max_new_tokens,
        generate=generate,
    )
    dense, optimized, *beside = (outcome(model, processor, request, prompt, m) for m in measured.values())
    text = model.config.get_text_config()
    about = About(
        name=loaded.name,
        model_type=model.config.model_type,
        units=units_of(model),
        parameters=sum(p.numel() for p in model.parameters()),
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        notes=loaded.notes,
    )
    rival = beside[0] if beside else None
    return Run(uuid.uuid4().hex, request, dense, optimized, prompt.shown, about, rungs, prompt.notes, rival)


class Beat(StoppingCriteria):
    """Called after every token: reports how far the measurement is, and raises when the user wants it to end."""

    def __init__(self, progress: Progress, variants: Sequence[str], rounds: int, tokens: int) -> None:
        self.progress, self.variants, self.calls, self.tokens = progress, variants, rounds * len(variants), tokens
        self.call, self.token, self.length = -1, 0, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] <= self.length or self.call < 0:
            self.call, self.token = self.call + 1, 0
        self.length = input_ids.shape[1]
        self.token += 1
        variant = self.variants[self.call % len(self.variants)]
        done = (self.call + min(self.token / self.tokens, 1)) / self.calls
        self.progress(0.1 + 0.9 * done, f"Run {self.call + 1} of {self.calls}: {variant}, token {self.token}")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def units_of(model: Any) -> str:
    """Return the units of coordinates in the model's answers; a model of unknown units is told to count pixels."""
    return click_units(model.config) or "pixels"


def asked(request: Request, units: str) -> str:
    """Return the words put to the model: models from the Hub are told in which form to answer with a click."""
    if request.task != "click" or request.source.name in bundled():
        return request.question
    return POINT_PROMPTS[units].replace("{question}", request.question)


def prepared(model: Any, processor: Any, request: Request) -> Prompt:
    """Return the prompt of a request, on the model's device."""
    question, sizes = asked(request, units_of(model)), processor.image_processor
    notes: tuple[str, ...] = ()
    if request.clip is None:
        inputs = image_prompt(processor, question, request.images)
        shown = tuple(as_seen(processor, image) for image in request.images)
    else:
        patch, merge = getattr(sizes, "patch_size", 14), getattr(sizes, "merge_size", 2)
        video = load_video(request.clip.path, patch_size=patch, merge_size=merge)
        inputs = video_prompt(processor, model, question, video)
        step = getattr(sizes, "temporal_patch_size", 1)
        shown = tuple(Image.fromarray(f.permute(1, 2, 0).byte().numpy()) for f in video.frames[::step])
        said = f"{len(video.indices)} frames read with {video.reader}, {video.sample_fps:.2f} per second"
        notes = (said, *video.notes)
    grid = inputs.get("image_grid_thw")
    resized = None
    if grid is not None and hasattr(sizes, "patch_size"):
        _, rows, columns = grid[0].tolist()
        resized = (columns * sizes.patch_size, rows * sizes.patch_size)
    return Prompt(placed_for(model, inputs), shown, notes, resized)


def outcome(model: Any, processor: Any, request: Request, prompt: Prompt, measured: Measurement) -> Outcome:
    """Return the answer as text, and where it points when a click was asked for."""
    text = str(processor.tokenizer.decode(measured.new_ids[0], skip_special_tokens=True)).strip()
    return Outcome(text, measured, place(model, request, prompt, text))


def place(model: Any, request: Request, prompt: Prompt, text: str) -> Point | None:
    """Return where an answer clicks, in pixels of the image as given; None where it should not, or names no point."""
    if request.task != "click" or not request.images:
        return None
    return clicked(text, units_of(model), request.images[0].size, prompt.resized)
