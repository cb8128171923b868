"""What a user takes home: files, and the code and the command that do the same again."""

from __future__ import annotations

import io
import json
import platform
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from pprint import pformat
from typing import Any

import streamlit as st
import torch
from PIL import Image

import vlmopt
from vlmopt.apps.page.running import asked
from vlmopt.apps.page.state import Clip, Run
from vlmopt.overlay import overlay
from vlmopt.policy.text import summary

BESIDE = "beside.json"
IMAGE, POLICY, OVERLAY, RESULT, SNIPPET = "image.png", "policy.json", "overlay.png", "result.json", "again.py"


@st.fragment
def show(run: Run) -> None:
    """Show the downloads, then the command and the snippet."""
    made = makers(run)
    kinds = {".png": "image/png", ".json": "application/json", ".py": "text/x-python", ".zip": "application/zip"}
    labels = {POLICY: "Policy", BESIDE: "The other policy", OVERLAY: "Overlay", RESULT: "Result", IMAGE: "Image"}
    with st.container(horizontal=True):
        for name, label in labels.items():
            if name in made:
                st.download_button(
                    label, made[name], name, kinds[name[name.rindex(".") :]], key=f"get-{name}-{run.id}",
                    on_click="ignore", icon=":material/download:",
                )  # fmt: skip
        st.download_button(
            "All in one", lambda: zipped(files(run)), "vlmopt-demo.zip", kinds[".zip"], key=f"get-all-{run.id}",
            on_click="ignore", icon=":material/folder_zip:", type="primary",
        )  # fmt: skip
    st.caption("All of it is of this run as it was asked; the preview changes the image above alone.")
    st.caption("The same again, beside the downloaded files; on the command line:")
    st.code(command(run), language="bash", wrap_lines=True)
    st.caption("In Python:")
    st.code(snippet(run), language="python")


def files(run: Run) -> dict[str, bytes]:
    """Return all files by name."""
    return {name: make() for name, make in makers(run).items()}


def makers(run: Run) -> dict[str, Callable[[], bytes]]:
    """Return what makes the files, by name: an image of millions of pixels is packed when somebody wants it."""
    request, maps = run.request, run.optimized.report.maps(0)
    found: dict[str, Callable[[], bytes]] = {
        POLICY: lambda: request.policy.to_json().encode(),
        RESULT: lambda: (json.dumps(result(run), indent=2) + "\n").encode(),
    }
    if (rival := request.rival) is not None:
        found[BESIDE] = lambda: rival.to_json().encode()
    if maps:
        found[OVERLAY] = lambda: png(overlay(run.shown, maps, title=summary(request.policy.to_dict())))
    if request.clip is not None and (clip := Path(request.clip.path)).is_file():
        found[clip_name(request.clip)] = clip.read_bytes
    if request.images:
        found[IMAGE] = lambda: png(request.images[0])
    found[SNIPPET] = lambda: snippet(run).encode()
    return found


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def zipped(packed: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in packed.items():
            archive.writestr(name, content)
    return out.getvalue()


def clip_name(clip: Clip) -> str:
    return "clip" + Path(clip.path).suffix


def result(run: Run) -> dict[str, Any]:
    """Return answers, costs and the machine they were measured on, JSON-ready."""
    outcomes = {"dense": run.dense, "optimized": run.optimized}
    if run.rival is not None:
        outcomes["beside"] = run.rival
    return {
        "vlmopt": vlmopt.__version__,
        "torch": torch.__version__,
        "machine": {"platform": platform.platform(), "threads": torch.get_num_threads()},
        "model": run.request.source.name,
        "question": asked(run.request, run.about.units),
        "task": run.request.task,
        "repeats": run.request.repeats,
        "notes": [*run.about.notes, *run.notes],
        "runs": {
            name: {"answer": o.text, "ids": list(o.ids), "point": o.point, **o.measurement.to_dict()}
            for name, o in outcomes.items()
        },
    }


def command(run: Run) -> str:
    """Return the `vlmopt run` command with everything that differs from its defaults; quoted for a shell."""
    request = run.request
    given = ["--video", clip_name(request.clip)] if request.clip is not None else ["--image", IMAGE]
    words = ["vlmopt", "run", *given, "--question", asked(request, run.about.units), "--policy", POLICY]
    words += ["--model", request.source.name, "--device", request.source.device, "--dtype", request.source.dtype]
    words += ["--max-new-tokens", str(request.max_new_tokens), "--repeats", str(request.repeats)]
    return shlex.join(words)


def snippet(run: Run) -> str:
    """Return Python code that makes the optimized answer again and draws the same overlay."""
    request = run.request
    source = f"{request.source.name!r}, device={request.source.device!r}, dtype={request.source.dtype!r}"
    question = repr(asked(request, run.about.units))
    policy = pformat(request.policy.to_dict(), width=100, sort_dicts=False)
    if request.clip is None:
        reading = f'image = load_image("{IMAGE}").image\ninputs = image_prompt(loaded.processor, {question}, [image])'
        media = "from vlmopt.media import load_image"
        drawing = f'overlay(as_seen(loaded.processor, image), report.maps(0)).save("{OVERLAY}")'
        names = "as_seen, image_prompt, placed"
    else:
        reading = (
            "sizes = loaded.processor.image_processor\n"
            f'video = load_video("{clip_name(request.clip)}", patch_size=getattr(sizes, "patch_size", 14), '
            'merge_size=getattr(sizes, "merge_size", 2))\n'
            f"inputs = video_prompt(loaded.processor, loaded.model, {question}, video)"
        )
        names, media = "placed, video_prompt", "from vlmopt.frames import load_video"
        drawing = "print(report.samples[0]['items'])"
    imports = [media, "from vlmopt.loading import load"]
    imports += ["from vlmopt.overlay import overlay"] if request.clip is None else []
    imports += [f"from vlmopt.prompt import {names}"]
    return "\n".join(
        [
            "import vlmopt",
            *sorted(imports),
            "",
            f"policy = {policy}",
            f"loaded = load({source})",
            reading,
            "inputs = placed(inputs, loaded.model.device, loaded.model.dtype)",
            "with vlmopt.optimized(loaded.model, policy):",
            f"    ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens={request.max_new_tokens})",
            "    report = vlmopt.report(loaded.model)",
            "print(report)",
            drawing,
            'answer = ids[0, inputs["input_ids"].shape[1]:]',
            "print(loaded.processor.tokenizer.decode(answer, skip_special_tokens=True))",
            "",
        ]
    )
