"""Servers in processes of their own, as in production, and requests to them over 127.0.0.1."""

from __future__ import annotations

import base64
import ctypes
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import psutil

PATIENCE = 400  # seconds until a server answers, on a busy machine


@contextmanager
def serving(*command: str) -> Iterator[openai.OpenAI]:
    """A client of the server that a command starts on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, preexec_fn=end_with_parent
    )
    try:
        began = time.monotonic()
        while not healthy(port):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() - began < PATIENCE, "the server does not answer"
            time.sleep(1)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    finally:
        engines = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        for process in psutil.wait_procs(engines, timeout=60)[1]:
            process.kill()  # an engine whose server is gone would stay
        server.kill()
        server.wait()


def end_with_parent() -> None:
    """Let Linux end this process when the test that started it is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def healthy(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).status == 200
    except OSError:
        return False


def post(client: openai.OpenAI, body: Any) -> tuple[int, str]:
    """Send a body that no client library would; (status, answer)."""
    data = json.dumps(body).encode("utf-8", "surrogatepass")  # NaN and lone surrogates included
    request = urllib.request.Request(
        f"{client.base_url}chat/completions", data, {"Content-Type": "application/json", "Authorization": "Bearer none"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def url_of(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def message(url: str, text: str = "What is in the picture?") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]}
    ]


def ask(client: openai.OpenAI, image: Any, policy: Any = "engine", model: str = "tiny", **more: Any) -> Any:
    extra = {} if policy == "engine" else {"mm_processor_kwargs": {"vlmopt": policy}}
    return client.chat.completions.create(
        model=model, messages=message(url_of(image)), max_tokens=8, temperature=0, extra_body=extra, **more
    )


def streamed(client: openai.OpenAI, image: Any, **more: Any) -> str:
    chunks = ask(client, image, stream=True, **more)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
