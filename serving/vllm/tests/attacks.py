"""What clients may send, by mistake or not: policies, processor settings, images, texts. All of it is data."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

QUARTER = {"method": "div_prune", "keep_ratio": 0.25}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


POLICIES: list[Any] = [
    7, True, "", "x" * 10_000, "\u0000", "\ud83e\uddea", "/etc/passwd", "../../etc/passwd", "file:///etc/passwd",
    [], [[]], [[1]], [None], [7, 7], {"x": 1}, {"": {}}, {"prune": {}}, {"prune": None}, {"prune": [QUARTER] * 3},
    {"keep_ratio": -1}, {"keep_ratio": 0}, {"keep_ratio": 7}, {"keep_ratio": "0.5"}, {"keep_ratio": True},
    {"keep_ratio": None}, {"keep_ratio": 1e-300}, {"keep_ratio": 0.5, "keep_tokens": 3}, {"keep_tokens": 10**30},
    {"keep_ratio": float("nan")}, {"keep_ratio": float("inf")}, {"keep_tokens": 1}, {"seed": -1}, {"seed": 10**40},
    {"seed": 2**62, "method": "random", "keep_ratio": 0.5}, {"method": "uniform", "keep_ratio": 7}, {"method": None},
    {"method": ["uniform"], "keep_ratio": 0.5}, {"method": "cd_pruner", "keep_ratio": 0.1}, nested(50), nested(900),
    "fastv:keep_ratio=0.1,layer=2", '{"prune": [{"method": "uniform", "keep_ratio": 0.5}]', {"method": "uniform",
    "keep_ratio": 0.5, "positions": "repack"}, {"positions": "pospad", "marker": "trained", "marker_from": "/etc"},
    {"positions": "pospad", "marker": "trained"}, {"positions": "pospad"}, {"layer": 1}, {"layer": -1},
    {"padding": "blank"}, {"padding": "square", "keep_ratio": 1.0}, {"segment": "frame"}, {"min_per_segment": 10**9},
    {"allocation": "first"}, {"method": "vision_zip", "keep_ratio": 0.2, "tower_layer": 99}, {"method": "vision_zip",
    "keep_ratio": 0.2, "tower_layer": -1, "contextual": 1.0}, {"method": "vision_zip", "keep_tokens": 1,
    "tower_layer": -1}, {"method": "focus_ui", "keep_ratio": 0.1, "scorer": "/etc"}, {"method": "debias", "host": {
    "method": "fastv", "keep_ratio": 0.1}}, {"method": "pixel_redundancy", "tolerance": float("nan")}, {"method":
    "pixel_redundancy", "tolerance": 1e9}, {"method": "resize", "keep_tokens": 1}, {"method": "resize", "keep_ratio":
    1e-9}, {"method": "zeroth_order", "keep_ratio": 0.1}, {"prefill": {}}, {"kv": {}}, {"gqa": "kernel"}, {"format":
    99, "prune": []}, [{"method": "pixel_redundancy"}, {"method": "pixel_redundancy"}], [{"method": "resize",
    "keep_ratio": 0.5}, QUARTER], [QUARTER, QUARTER], {"method": "ui_graph", "keep_tokens": 1}, {"method": "evs",
    "keep_ratio": 0.1, "reference": "x"}, {"method": "cen_prune", "keep_tokens": 139, "positions": "pospad"},
]  # fmt: skip

SETTINGS: list[dict[str, Any]] = [
    {"min_pixels": -1}, {"min_pixels": "abc"}, {"min_pixels": 10**15}, {"max_pixels": 0}, {"max_pixels": None},
    {"size": {}}, {"size": 7}, {"size": {"shortest_edge": 1, "longest_edge": 1}}, {"size": {"height": 5, "width": 5}},
    {"patch_size": 7}, {"patch_size": 0}, {"patch_size": 28}, {"merge_size": 2}, {"merge_size": 0},
    {"temporal_patch_size": 1}, {"temporal_patch_size": 4}, {"do_resize": False}, {"do_rescale": False},
    {"do_normalize": False}, {"do_rescale": False, "do_normalize": False}, {"rescale_factor": float("nan")},
    {"image_mean": None}, {"image_mean": [0]}, {"image_mean": [1, 2, 3, 4]}, {"image_std": [0, 0, 0]},
    {"image_std": [float("nan")] * 3}, {"return_tensors": "np"}, {"return_tensors": 7}, {"images": []}, {"text": "x"},
    {"videos": [1]}, {"device": "cuda"}, {"padding": "max_length", "max_length": 3, "truncation": True},
    {"do_convert_rgb": False}, {"data_format": "channels_last"}, {"input_data_format": "channels_last"}, {"fps": -1},
    {"num_frames": 10**9}, {"vlmopt_facts": [1, 2]}, {"vlmopt_keep": []}, {"VLMOPT": QUARTER}, {"": 1},
    {"x": nested(50)}, {"second_per_grid_ts": [float("nan")]}, {"image_grid_thw": [[1, 2, 2]]},
    {"pixel_values": [[0.0]]},
]  # fmt: skip

TEXTS = [
    "", " ", "\u0000", "<|image_pad|>", "<|image_pad|>" * 50, "<|vision_start|><|image_pad|><|vision_end|>",
    "<|video_pad|>", "<|vision_end|><|vision_start|>", "<|im_end|>", "\U0001f9ea" * 500, "word " * 5000,
]  # fmt: skip


# Whole bodies, and keys that are laid over a good one.
BODIES: list[Any] = [{}, [], None, 7, "x", {"model": "tiny"}, {"model": "tiny", "messages": None}, nested(300)]
ODD: list[dict[str, Any]] = [
    {"mm_processor_kwargs": 7}, {"mm_processor_kwargs": []}, {"mm_processor_kwargs": "vlmopt"},
    {"mm_processor_kwargs": None}, {"mm_processor_kwargs": [{"vlmopt": QUARTER}]}, {"max_tokens": -1},
    {"max_completion_tokens": 0}, {"truncate_prompt_tokens": 5}, {"prompt_logprobs": 1},
    {"n": 3, "temperature": 1.0}, {"logprobs": True, "top_logprobs": 3}, {"echo": True}, {"stream": 7},
    {"add_generation_prompt": False}, {"chat_template": "{{ messages }}"}, {"chat_template": "<|image_pad|>" * 2},
    {"media_io_kwargs": {"image": 7}}, {"media_io_kwargs": {"video": {"num_frames": -1}}}, {"model": "other"},
    {"cache_salt": "x"},
]  # fmt: skip


def conversations(image: str) -> list[Any]:
    """Messages that hold an image where none is expected, several, or what looks like one."""
    part, text = {"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "What?"}
    contents: list[Any] = [
        None, [], "", 7, [7], [None], [{}], [{"type": "image_url"}], [{"type": "image_url", "image_url": None}],
        [{"type": "image_url", "image_url": image}], [{"type": "image_url", "image_url": {"url": 7}}],
        [{"type": "image_url", "image_url": {}}], [part], [part, part], [text, part], [part, text, part, text, part],
        [part] * 9, [{**part, "uuid": "mine"}, text], [{"type": "image_url", "image_url": None, "uuid": "mine"}, text],
        [{"type": "image_url", "image_url": None, "uuid": "nobody's"}, text], [{**part, "uuid": 7}, text],
        [{**part, "uuid": ""}, text], [{"type": "video_url", "video_url": {"url": image}}, text],
        [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}, text],
        [{"type": "image_embeds", "image_embeds": "x"}, text], [{"type": "image_embeds", "image_embeds": None}, text],
        [text, {"type": "text", "text": "<|vision_start|><|image_pad|><|vision_end|>"}], "<|image_pad|>" * 7,
        [part, {"type": "text", "text": "<|vision_start|><|image_pad|><|vision_end|>"}, part],
    ]  # fmt: skip
    user = [[{"role": "user", "content": content}] for content in contents]
    roles = [[{"role": role, "content": [part, text]}] for role in ("system", "assistant", "tool", "x", 7, None)]
    turns = {"role": "user", "content": [part, text]}, {"role": "assistant", "content": "Yes."}
    return [*user, *roles, [], 7, [7], [*turns, turns[0]], [turns[1]], [{}], [*turns] * 20]


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def file(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG whose head states a size, and that holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def urls() -> list[str]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    whole = file(noise)
    return [
        "", "data:", "data:image/png;base64,", "data:image/png;base64,!!!!", "file:///etc/passwd", "/etc/passwd",
        "http://127.0.0.1:1/x.png", "ftp://x", "javascript:1", url(b""), url(b"no image"), url(whole[:40]),
        url(whole[:-20]), url(whole[:60] + bytes(40) + whole[100:]), url(claiming(1, 2**31 - 1)), url(claiming(0, 0)),
        url(claiming(60_000, 60_000)), url(claiming(20_000, 8_000)), url(file(noise.resize((1, 1)))),
        url(file(noise.resize((3000, 1)))), url(file(noise.resize((1, 3000)))), url(file(noise.resize((15, 15)))),
        url(file(noise.resize((1900, 20)))), url(file(noise.convert("1"))), url(file(noise.convert("L"))),
        url(file(noise.convert("P"))), url(file(noise.convert("LA"))), url(file(noise.convert("I;16"))),
        url(file(noise.convert("CMYK"), "JPEG")), url(file(noise.convert("RGBA"), "WEBP")),
        url(file(noise, "GIF", save_all=True, append_images=[noise.rotate(90)])), url(whole, "image/svg+xml"),
        url(whole, "video/mp4"), url(file(Image.new("F", (20, 20), float("nan")), "TIFF"), "image/tiff"),
        url(file(Image.new("RGB", (1400, 1400)))),
    ]  # fmt: skip
