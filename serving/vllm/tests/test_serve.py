"""`vlmopt serve`, asked by the openai client over 127.0.0.1."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

import vlmopt

from . import attacks
from .checkpoints import BUNDLED
from .servers import ask, message, post, serving, streamed

# The torchvision of this environment decodes no images (see torchvision_operators.py); vlmopt needs none.
WITHOUT_TORCHVISION = (
    "import sys; sys.modules['torchvision'] = None; from vlmopt.cli.main import main; sys.exit(main())"
)
MODEL = str(BUNDLED / "tiny-qwen")
FASTV = "fastv:keep_tokens=2,layer=1"
EVERYTHING = {
    "prune": [{"method": "div_prune", "keep_ratio": 0.1}, {"method": "fastv", "keep_ratio": 0.05, "layer": 2}],
    "attention": [{"method": "image_boost"}],
    "prefill": {"pattern": {"method": "vertical_slash"}, "min_len": 16},
    "kv": {"method": "snap_kv", "keep_ratio": 0.1, "recent": 2, "window": 8, "per_head": False},
}


def answer(policy: Any, image: Any) -> str:
    model, processor = vlmopt.load_checkpoint("tiny-qwen")
    vlmopt.optimize(model, policy)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    said: str = processor.batch_decode(out, skip_special_tokens=True)[0]
    return "<|assistant|>" + said


def test_answers_are_those_of_the_optimized_model_whatever_came_before(images):
    image, expected = images[1], answer(FASTV, images[1])
    assert expected != answer({}, image)
    with serving(sys.executable, "-c", WITHOUT_TORCHVISION, "serve", "tiny-qwen", "--policy", FASTV) as client:

        def check() -> None:
            # transformers looks for the marks of Qwen's own chat template, and without them repeats the prompt.
            assert ask(client, image, model=MODEL).choices[0].message.content.endswith(expected)

        check()
        assert streamed(client, image, model=MODEL).endswith(expected)
        for chunk in ask(client, image, model=MODEL, stream=True):
            chunk.choices[0].delta  # noqa: B018  # the first one; then this client goes away
            break
        check()
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, image, model="another")
        assert "pinned to" in refused.value.response.text
        with pytest.raises(openai.UnprocessableEntityError):
            ask(client, image, {"keep_ratio": 0.5}, model=MODEL)
        for url in attacks.urls()[:16]:
            post(client, {"model": MODEL, "messages": message(url), "max_tokens": 2})
        check()
        reset = urllib.request.Request(f"http://127.0.0.1:{client.base_url.port}/reset", b"", method="POST")
        urllib.request.urlopen(reset, timeout=60).read()  # transformers drops the model, and loads it anew when asked
        check()


def test_corrections_sparse_prefill_and_eviction_are_served_as_well(images, tmp_path: Path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(EVERYTHING))
    image, expected = images[1], answer(EVERYTHING, images[1])
    assert expected != answer({}, image)
    with serving(sys.executable, "-c", WITHOUT_TORCHVISION, "serve", "tiny-qwen", "--policy", str(file)) as client:
        assert ask(client, image, model=MODEL).choices[0].message.content.endswith(expected)
