"""The two interfaces of lmms-eval: chat tasks give messages, simple ones a context and what there is to see."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from ...api import optimize, report
from .conversation import Conversation, conversation, user_turn
from .costs import Costs
from .decoding import Forced, cut, decoding, stops, unused, weighed
from .inputs import Inputs
from .setup import load_model, refuse_unknown, whole


@dataclass(frozen=True)
class Asked:
    """One request: its number, what is asked, and the task's settings or the answer to weigh."""

    place: int
    conversation: Conversation
    how: Any


class Vlmopt(lmms):
    """A transformers model under a vlmopt policy.

    Args:
        pretrained: bundled name, directory, or Hub id.
        policy: preset name, policy file, directory, line with one setting, or JSON; "dense" is the model as it is.
        device: "auto" or a torch device; of several processes each takes its own.
        dtype: "auto" (that of the weights), "float32", "bfloat16" or "float16".
        device_map: "auto" spreads a model too big for one device over all of them.
        batch_size: samples in a call, 1 or more; a video is alone.
        min_pixels, max_pixels: bounds of an image's area, for families that take any size (Qwen-VL); 1 or more.
        max_frames: of a video, 2 or more.

    Raises:
        ValueError, TypeError: an unknown setting, one out of range, a model that cannot be loaded, or a policy that
            cannot work on it.
    """

    def __init__(
        self,
        pretrained: str = "tiny-qwen",
        policy: str = "dense",
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | None = None,
        batch_size: int | str = 1,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_frames: int = 32,
        **unknown: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(unknown)
        self.batch_size = whole("batch_size", batch_size, 1)
        low, high = (
            None if bound is None else whole(name, bound, 1)
            for name, bound in (("min_pixels", min_pixels), ("max_pixels", max_pixels))
        )
        frames = whole("max_frames", max_frames, 2)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        loaded = load_model(pretrained, str(device), dtype, device_map, self.accelerator)
        self.model = loaded.model  # by itself: lmms-eval frees it before it marks the answers
        self.device = self.model.device
        self.inputs = Inputs.of(self.model, loaded.processor, low, high, frames)
        with warnings.catch_warnings(record=True) as cautions:  # lmms-eval silences warnings
            warnings.simplefilter("always")
            optimize(self.model, policy)
        for note in (*loaded.notes, *(caution.message for caution in cautions)):
            logger.warning(f"vlmopt: {note}")

    def asked(self, request: Any) -> tuple[Conversation, Mapping[str, Any]]:
        """Return what a request to generate asks, and the settings of its task."""
        raise NotImplementedError

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests, in their order; answers are cut at the strings that end them."""
        found: dict[int, Any] = {}
        costs, told = Costs(), set[str]()
        with torch.inference_mode():
            for batch in self.batches(requests, self.asked):
                if new := unused(batch[0].how) - told:
                    logger.warning(f"vlmopt does not use these settings of a task: {', '.join(sorted(new))}")
                    told |= new
                inputs = self.inputs.batch([one.conversation for one in batch], self.model)
                started = time.perf_counter()
                out = self.model.generate(**inputs, **decoding(batch[0].how), pad_token_id=self.inputs.pad)
                answers = out[:, inputs["input_ids"].shape[1] :].cpu()
                lengths = self.inputs.lengths(answers)
                costs.add(report(self.model), lengths, time.perf_counter() - started)
                prompts = inputs["attention_mask"].sum(1).tolist()
                for one, text, read, written in zip(batch, self.inputs.texts(answers), prompts, lengths, strict=True):
                    counts = TokenCounts(input_tokens=read, output_tokens=written)
                    found[one.place] = GenerationResult(cut(text, stops(one.how)), counts)
        costs.log()
        return [found[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Weigh one given answer per request: mean negative log-likelihood per token, and whether it is greedy.

        The loss and not the likelihood: lmms-eval's scoring takes the least, and its own models give that. In a
        `GenerationResult`, because lmms-eval 0.7.3 turns a bare pair into a string, on which its scoring then fails.

        Raises:
            ValueError: a likelihood without a prompt, as the metric acc_mutual_info wants it.
        """
        found: dict[int, Any] = {}
        with torch.inference_mode():
            for batch in self.batches(requests, self.weighted):
                inputs = self.inputs.batch([one.conversation for one in batch], self.model)
                answers = [torch.tensor(self.inputs.answer(one.how)) for one in batch]
                tokens = torch.nn.utils.rnn.pad_sequence(answers, True, self.inputs.filler)
                valid = torch.arange(tokens.shape[1]) < torch.tensor([[len(answer)] for answer in answers])
                out = self.model.generate(
                    **inputs,
                    **decoding({"max_new_tokens": tokens.shape[1]}),
                    pad_token_id=self.inputs.pad,
                    logits_processor=[Forced(tokens, inputs["input_ids"].shape[1])],
                    return_dict_in_generate=True,
                    output_logits=True,
                )
                losses, greedy = weighed(out.logits, tokens, valid)
                for one, loss, same in zip(batch, losses.tolist(), greedy.tolist(), strict=True):
                    found[one.place] = GenerationResult((loss, same))
        return [found[place] for place in range(len(requests))]

    def weighted(self, request: Any) -> tuple[Conversation, str]:
        """Return what a request for a likelihood asks, and the answer."""
        if len(request.args) != 6:
            raise ValueError("the likelihood of an answer without its question (acc_mutual_info) cannot be had here")
        context, target, visuals, number, task, split = request.args
        document = self.task_dict[task][split][number]
        answer = target if isinstance(target, str) else target(document)
        return conversation(user_turn(visuals(document), context)), str(answer)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse tasks of several rounds.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "tasks of several rounds (generate_until_multi_round) are not supported, leave them out of --tasks; vlmopt "
            "answers generate_until and, with --force_simple, multiple_choice and loglikelihood"
        )

    def batches(
        self, requests: Sequence[Any], read: Callable[[Any], tuple[Conversation, Any]]
    ) -> Iterator[list[Asked]]:
        """Yield requests as they come, together if one call can answer them: same settings, all with images or none.

        Images are opened when their turn comes.
        """
        groups: dict[tuple[Any, ...], list[Asked]] = {}
        with tqdm(total=len(requests), disable=self.rank != 0, desc="vlmopt") as bar:
            for place, request in enumerate(requests):
                asked = Asked(place, *read(request))
                settings = None if isinstance(asked.how, str) else repr(sorted(asked.how.items()))
                clip = place if asked.conversation.clip else None
                group = groups.setdefault(key := (settings, bool(asked.conversation.images), clip), [])
                group.append(asked)
                if clip is not None or len(group) == self.batch_size:
                    yield groups.pop(key)
                    bar.update(len(group))
            for group in groups.values():
                yield group
                bar.update(len(group))


class Chat(Vlmopt):
    """The interface for tasks that give whole conversations; lmms-eval's choice where it has one."""

    is_simple = False

    def asked(self, request: Any) -> tuple[Conversation, Mapping[str, Any]]:
        _, messages, settings, number, task, split = request.args
        return conversation(messages(self.task_dict[task][split][number])), settings


class Simple(Vlmopt):
    """The interface for tasks of one turn, and for those that weigh given answers; `--force_simple` asks for it."""

    is_simple = True

    def asked(self, request: Any) -> tuple[Conversation, Mapping[str, Any]]:
        context, settings, visuals, number, task, split = request.args
        return conversation(user_turn(visuals(self.task_dict[task][split][number]), context)), settings
