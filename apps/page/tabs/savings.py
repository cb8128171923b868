"""What this run's policy would save on a large model and a GPU, predicted, and the commands that find out."""

from __future__ import annotations

import shlex

import streamlit as st

import vlmopt
from vlmopt.apps.page import figures
from vlmopt.apps.page.jobs import escaped
from vlmopt.apps.page.running import Worker
from vlmopt.apps.page.state import Run
from vlmopt.apps.page.takeaway import POLICY
from vlmopt.estimation import devices
from vlmopt.estimation.source import known

FIRST_MODEL, FIRST_DEVICE, FIRST_IMAGE = "Qwen/Qwen2.5-VL-7B-Instruct", "a100", "1280x800"
OBJECTIVE = "ttft"


def show(run: Run, worker: Worker) -> None:
    st.caption(
        "What would it save on a model and a device that are not here? **Predicted** from the model's config alone, "
        "not measured; of answers it says nothing."
    )
    left, middle, right = st.columns(3)
    models, places = known(), devices()
    model = left.selectbox("Model", models, index=models.index(FIRST_MODEL), key=f"savings-model-{run.id}")
    device = middle.selectbox(
        "Device", list(places), index=list(places).index(FIRST_DEVICE), key=f"savings-device-{run.id}",
        format_func=lambda name: places[name].title,
    )  # fmt: skip
    image = right.text_input("Image, pixels", FIRST_IMAGE, max_chars=20, key=f"savings-image-{run.id}")
    try:
        found = vlmopt.estimate(
            model, image=image, policies={"this policy": run.request.policy}, devices=[device],
            new_tokens=run.request.max_new_tokens, assume_keep=kept(run),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        st.info(f"No prediction: {escaped(str(error))}")
    else:
        st.dataframe(rows(found, device), hide_index=True, width="stretch")
        for note in found.of("this policy", device).notes:
            st.caption(escaped(note))
    st.caption("And what would it cost in answers? That only your own data can say, and which policy is the fastest.")
    if st.button("Write the commands", icon=":material/terminal:", key=f"savings-commands-{run.id}"):
        st.code("\n".join(commands(run, model, device, image)), language="bash", wrap_lines=True)
        st.caption(f"{POLICY} lies under Take away; the manifest has a question a line, with images beside it.")


def kept(run: Run) -> float:
    """Return the share of visual tokens that this run kept, for methods that decide it by the content."""
    sample = run.optimized.report.samples[0]
    return float(max(sample["visual_tokens_kept"], 1) / max(sample["visual_tokens"], 1))


def rows(found: vlmopt.Estimate, device: str) -> figures.Rows:
    """Return the figures of both variants side by side, as text."""
    dense, own = (found.of(name, device) for name in ("dense", "this policy"))
    table = {
        "visual tokens, layer mean": [f"{one.visual_tokens:.0f}" for one in (dense, own)],
        "first token": [f"{one.ttft_ms:.0f} ms" for one in (dense, own)],
        "of it the vision tower": [f"{one.vision_ms:.0f} ms" for one in (dense, own)],
        "whole answer": [f"{one.total_ms / 1e3:.2f} s" for one in (dense, own)],
        "KV cache": [f"{one.kv_bytes / 1e6:.0f} MB" for one in (dense, own)],
        "largest batch": [f"{one.largest_batch}" for one in (dense, own)],
    }
    gain = {"first token": dense.ttft_ms / own.ttft_ms, "whole answer": dense.total_ms / own.total_ms}
    return [
        {"figure": name, "dense": a, "this policy": b, "times as fast": f"{gain[name]:.2f}" if name in gain else ""}
        for name, (a, b) in table.items()
    ]


def commands(run: Run, model: str, device: str, image: str) -> list[str]:
    """Return the commands that predict the same, and that find the fastest policy on the user's own data."""
    predict = ["vlmopt", "estimate", "--model", model, "--image", image, "--policy", POLICY, "--device", device]
    predict += ["--new-tokens", f"{run.request.max_new_tokens}"]
    if any(selector.adaptive for selector in run.request.policy.active):
        predict += ["--assume-keep", f"{kept(run):.3g}"]
    find = ["vlmopt", "tune", "--model", model, "--data", "manifest.jsonl", "--budget", "1", "--objective", OBJECTIVE]
    return [shlex.join(predict), shlex.join([*find, "--out", "runs/tuned"])]
