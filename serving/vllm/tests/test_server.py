"""vLLM's OpenAI server with the plug-in, asked by the openai client, and by clients that mean no good."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from . import attacks
from .servers import ask, healthy, message, post, serving, streamed, url_of

QUARTER = {"method": "div_prune", "keep_ratio": 0.25}
IN_TOWER = {"method": "vision_zip", "keep_ratio": 0.2, "tower_layer": -1}
OF_MEDIA = (
    "images",
    "messages",
)  # whose loading, by vLLM itself, may end in a status of 500 before a policy is looked at
CHOICES = [None, {"method": "pixel_redundancy"}, IN_TOWER, {"padding": "blank"}]


@pytest.fixture(scope="module")
def client(checkpoints: Callable[[str], Path]) -> Iterator[openai.OpenAI]:
    with serving(
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoints("tiny_qwen")),
        "--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager",
        "--block-size", "32", "--trust-request-mm-kwargs", "--mm-processor-kwargs", json.dumps({"vlmopt": QUARTER}),
    ) as client:  # fmt: skip
        yield client


def test_policies_of_engine_and_request(client, images):
    quarter = ask(client, images[1])
    assert ask(client, images[1], QUARTER).usage.prompt_tokens == quarter.usage.prompt_tokens
    half, dense = ask(client, images[1], {"keep_ratio": 0.5}), ask(client, images[1], None)
    rows = 140  # 10 x 14 cells
    assert half.usage.prompt_tokens - quarter.usage.prompt_tokens == rows // 4
    assert dense.usage.prompt_tokens - half.usage.prompt_tokens == rows // 2
    assert streamed(client, images[1]) == quarter.choices[0].message.content


@pytest.mark.parametrize("bad", [
    7, "fastv:keep_ratio=0.1,layer=2", {"method": "uniform", "keep_ratio": 7}, {"x": 1}, "/etc/passwd", [[1]],
    {"method": "cd_pruner", "keep_ratio": 0.1}, {"prune": {}}, {"keep_ratio": -1}, {"marker_from": "/etc"},
    attacks.nested(900),
])  # fmt: skip
def test_a_bad_policy_is_the_clients_fault_and_named(client, images, bad):
    with pytest.raises(openai.BadRequestError, match="vlmopt"):
        ask(client, images[1], bad)


def sent(kind: str, image: str) -> list[Any]:
    """Bodies with one thing or another that nobody should send."""

    def body(url: Any = image, text: Any = "What?", **kwargs: Any) -> dict[str, Any]:
        return {"model": "tiny", "messages": message(url, text), "max_tokens": 2, "mm_processor_kwargs": kwargs}

    return {
        "policies": [body(vlmopt=policy) for policy in attacks.POLICIES],
        "settings": [body(vlmopt=p, **setting) for setting in attacks.SETTINGS for p in CHOICES[1:3]],
        "images": [body(url, vlmopt=policy) for url in attacks.urls() for policy in CHOICES],
        "texts": [body(text=text) for text in attacks.TEXTS],
        "bodies": [*attacks.BODIES, *({**body(), **odd} for odd in attacks.ODD)],
        "messages": [{**body(), "messages": messages} for messages in attacks.conversations(image)],
    }[kind]


@pytest.mark.parametrize("kind", ["policies", "settings", "images", "texts", "bodies", "messages"])
def test_nothing_that_a_client_sends_ends_the_engine(client, images, kind):
    before, wrong = ask(client, images[1]).choices[0].message.content, []
    for body in sent(kind, url_of(images[1])):
        status, said = post(client, body)
        assert healthy(client.base_url.port), f"the engine ended: {str(body)[-400:]}: {status} {said[:400]}"
        if status >= 500 and kind not in OF_MEDIA:
            wrong.append(f"{status} for {str(body)[-200:]}: {said[:400]}")
    assert not wrong, "\n".join(wrong)
    assert ask(client, images[1]).choices[0].message.content == before


def test_an_image_of_a_refused_request_may_be_asked_for_again(client, images):
    image = images[1].rotate(180)  # in no cache yet
    refused = {"model": "tiny", "messages": message(url_of(image), "What is <|image_pad|>?"), "max_tokens": 2}
    status, said = post(client, refused)
    assert (status, "holds a token that stands for images" in said) == (400, True)
    assert ask(client, image).usage.prompt_tokens == ask(client, images[1]).usage.prompt_tokens
