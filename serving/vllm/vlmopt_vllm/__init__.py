"""vlmopt's selectors inside vLLM, through the entry point `vllm.general_plugins`.

    vllm serve MODEL --mm-processor-kwargs '{"vlmopt": {"method": "div_prune", "keep_ratio": 0.25}}'

An engine has two halves. The processor (front end) turns an image into pixels and says how many placeholders stand for
it in the prompt; the model (worker) encodes the pixels and hands over that many rows.

    policies.py    what is asked for: a policy that an engine can follow, or the reason why it cannot
    items.py       both: one image as the model is given it
    plans.py       both: what that means for an image: how many rows stay, and which, where pixels or grid decide
    factories.py   front end: what vLLM makes of a model's inputs, with the key and without it
    processor.py   front end: plans, fewer placeholders, hashes that know the policy; all refusals
    models.py      worker: the model classes; they encode, and say where the rows lie
    batches.py     worker: which items are encoded together
    choice.py      worker: lets selectors choose among the rows
    trained.py     worker: the trained marker of PosPad
    signals.py     worker: what selectors read of tower and projector
    tower.py       worker: the tower on some of its cells
    positions.py   worker: M-RoPE positions of pruned prompts
    markers.py     both: PosPad, one marker per run of dropped rows
    families.py    which classes of vLLM are served

Without the key "vlmopt" among the engine's `mm_processor_kwargs` all of it stands aside.
"""

from __future__ import annotations

TESTED = ("0.32",)  # minors of vLLM; private names are relied on, so no other is served


def register() -> None:
    """Register the served model classes; vLLM calls this in every process of an engine, possibly more than once.

    Raises:
        RuntimeError: a release of vLLM that was not tested.
    """
    from vllm import ModelRegistry, __version__

    if ".".join(__version__.split(".")[:2]) not in TESTED:
        raise RuntimeError(
            f"vlmopt-vllm works with vLLM {', '.join(TESTED)}; this is {__version__}; install one of these"
        )
    from .families import ARCHITECTURES
    from .runner import let_cpu_runner_ask

    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, f"{__name__}.models:{architecture}")
    let_cpu_runner_ask()
