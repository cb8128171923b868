"""vLLM's OpenAI server with the plug-in, and `vlmopt serve`, each asked by the openai client over 127.0.0.1."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from .checkpoints import BUNDLED

QUARTER = {"method": "div_prune", "keep_ratio": 0.25}
# The torchvision of this environment decodes no images (see torchvision_operators.py); vlmopt needs none.
WITHOUT_TORCHVISION = (
    "import sys; sys.modules['torchvision'] = None; from vlmopt.cli.main import main; sys.exit(main())"
)
PATIENCE = 400  # seconds until a server answers, on a busy machine


@contextmanager
def serving(*command: str) -> Iterator[Any]:
    """A client of the server that a command starts on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Engine processes of their own, as in production.
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env=environment)
    try:
        began = time.monotonic()
        while True:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() - began < PATIENCE, "the server does not answer"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            except OSError:
                time.sleep(1)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
    finally:
        server.terminate()
        server.wait(60)


def message(picture: Any, text: str = "What is in the picture?") -> list[dict[str, Any]]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]}
    ]


def ask(client: Any, picture: Any, policy: Any = "engine", model: str = "tiny", **more: Any) -> Any:
    extra = {} if policy == "engine" else {"mm_processor_kwargs": {"vlmopt": policy}}
    return client.chat.completions.create(
        model=model, messages=message(picture), max_tokens=8, temperature=0, extra_body=extra, **more
    )


def test_vllm_serves_policies_of_engine_and_request_and_survives_what_clients_send(checkpoints, pictures):
    options = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--block-size", "32"]
    with serving(
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoints("tiny_qwen")),
        "--served-model-name", "tiny", *options,
        "--trust-request-mm-kwargs", "--mm-processor-kwargs", json.dumps({"vlmopt": QUARTER}),
    ) as client:  # fmt: skip
        quarter = ask(client, pictures[1])
        assert ask(client, pictures[1], QUARTER).usage.prompt_tokens == quarter.usage.prompt_tokens
        half, dense = ask(client, pictures[1], {"keep_ratio": 0.5}), ask(client, pictures[1], None)
        rows = 140  # 10 x 14 cells
        assert half.usage.prompt_tokens - quarter.usage.prompt_tokens == rows // 4
        assert dense.usage.prompt_tokens - half.usage.prompt_tokens == rows // 2
        said = [
            chunk.choices[0].delta.content or "" for chunk in ask(client, pictures[1], stream=True) if chunk.choices
        ]
        assert "".join(said) == quarter.choices[0].message.content
        for bad in (7, "fastv:keep_ratio=0.1,layer=2", {"method": "uniform", "keep_ratio": 7}, {"x": 1}, "/etc/passwd",
                    {"method": "cd_pruner", "keep_ratio": 0.1}, [[1]], {"prune": {}}, {"keep_ratio": -1}):  # fmt: skip
            with pytest.raises(openai.BadRequestError) as refused:
                ask(client, pictures[1], bad)
            assert "vlmopt" in str(refused.value)
        assert ask(client, pictures[1]).choices[0].message.content == quarter.choices[0].message.content


def test_vlmopt_serve_gives_the_answers_of_the_optimized_model(pictures):
    import vlmopt

    command = [sys.executable, "-c", WITHOUT_TORCHVISION, "serve", "tiny-qwen", "--device", "cpu"]
    with serving(*command, "--policy", "fastv:keep_ratio=0.3,layer=2") as client:
        model = {"model": str(BUNDLED / "tiny-qwen")}
        served = ask(client, pictures[0], **model).choices[0].message.content
        said = [
            chunk.choices[0].delta.content or ""
            for chunk in ask(client, pictures[0], stream=True, **model)
            if chunk.choices
        ]
    model, processor = vlmopt.load_checkpoint("tiny-qwen")
    vlmopt.optimize(model, "fastv:keep_ratio=0.3,layer=2")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[pictures[0]], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    expected = processor.batch_decode(out, skip_special_tokens=True)[0]
    # Around it transformers looks for the marks of Qwen's own chat template, and without them repeats the prompt.
    assert served.endswith("<|assistant|>" + expected)
    assert "".join(said).endswith("<|assistant|>" + expected)
