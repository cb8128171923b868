"""Trained FocusUI scorers as files: `focus_ui.json` says what they were trained for, `focus_ui.safetensors` holds them.

Both may lie in a directory or Hub repository of their own, beside a model's files, or beside a policy.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmopt.core import parse, shown
from vlmopt.pruning import Scorer, Selector

from . import hub
from .checkpoints import HERE
from .checkpoints.names import is_hub_id
from .families import family_of
from .offload import resident
from .version import __version__

FILES = ("focus_ui.json", "focus_ui.safetensors")
FORMAT = 1
PRINTED = 8  # rows and columns of the embedding table that make up its fingerprint
ROWS = 256  # they are taken from the first rows, which stay when words are added
APART = 0.02  # of the largest value: more than rounding to bfloat16 does


@dataclass(frozen=True, eq=False)
class TrainedScorer:
    """A scorer, perhaps with a PosPad marker, and the model it belongs to."""

    scorer: Scorer
    marker: Tensor | None  # [D], as the first decoder layer takes embeddings
    model: Mapping[str, Any]  # `facts` of the model
    trained_with: Mapping[str, Any] = field(default_factory=dict)  # data, steps, seed: whatever explains it

    def check(self, source: str, model: Mapping[str, Any], marker: bool) -> None:
        """Raise `ValueError` unless this belongs to the model with these `facts`, with a marker where one is asked."""
        for key in ("model_type", "hidden_size"):
            if self.model[key] != model[key]:
                raise ValueError(
                    f"scorer {source!r} was trained for {key}={self.model[key]!r}, this model has {model[key]!r}; "
                    "train one for this model, or use instruction_similarity, which needs no training"
                )
        trained, here = (torch.tensor(of["fingerprint"], dtype=torch.float32) for of in (self.model, model))
        apart = APART * trained.abs().max()
        if trained.shape != here.shape or not bool(apart.isfinite() & ((trained - here).abs() <= apart).all()):
            raise ValueError(
                f"scorer {source!r} was trained on {self.model['name_or_path']!r}, whose word embeddings differ from "
                f"those of {model['name_or_path']!r}; train one for this model, or use instruction_similarity"
            )
        if marker and self.marker is None:
            raise ValueError(f"scorer {source!r} comes without a trained marker; use marker='mean' or 'last'")


@dataclass(frozen=True, eq=False)
class Trained:
    """The trained weights that the methods of one policy use, by source."""

    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    markers: Mapping[str, Tensor] = field(default_factory=dict)  # [D] each


def required(selectors: Sequence[Selector], model: Any) -> Trained:
    """Load the trained weights of some methods by source, checked against the model they are to serve.

    Raises:
        ValueError: a source cannot be read, belongs to another model, or lacks the marker that is asked of it.
    """
    wanted: dict[str, bool] = {}
    for method in selectors:
        for source, marker in method.weights.items():
            wanted[source] = marker or wanted.get(source, False)
    found = {source: load(source) for source in wanted}
    for source, trained in found.items():
        trained.check(source, facts(model), wanted[source])
    return Trained(
        {source: trained.scorer for source, trained in found.items()},
        {source: trained.marker for source, trained in found.items() if trained.marker is not None},
    )


def facts(model: Any) -> dict[str, Any]:
    """Return the facts that a scorer's file records of its model."""
    embeddings = resident(model.get_input_embeddings()).weight
    return {
        "family": family_of(model.config).name,
        "model_type": model.config.model_type,
        "hidden_size": embeddings.shape[1],
        "name_or_path": model.config.name_or_path,
        "fingerprint": fingerprint(embeddings),
    }


def fingerprint(embeddings: Tensor) -> list[float]:
    """Return some values of an embedding table [V, D]."""
    rows = torch.linspace(0, min(len(embeddings), ROWS) - 1, PRINTED).long()
    columns = torch.linspace(0, embeddings.shape[1] - 1, PRINTED).long()
    here = embeddings.device
    return embeddings.detach()[rows.to(here)][:, columns.to(here)].flatten().float().tolist()


def save(trained: TrainedScorer, directory: str | Path) -> Path:
    """Write both files into a directory, which is made if missing; return the directory."""
    from safetensors.torch import save_file

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    scorer = trained.scorer
    config = {
        "format": FORMAT,
        "vlmopt": __version__,
        "dim": scorer.dim,
        "heads": scorer.heads,
        "pooling": scorer.pooling,
        "model": dict(trained.model),
        "trained_with": dict(trained.trained_with),
    }
    tensors = {f"scorer.{name}": value.detach().cpu().contiguous() for name, value in scorer.state_dict().items()}
    if trained.marker is not None:
        tensors["marker"] = trained.marker.detach().cpu().contiguous()
    (folder / FILES[0]).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    save_file(tensors, folder / FILES[1], metadata={"format": "pt"})
    return folder


def load(source: str, **download: Any) -> TrainedScorer:
    """Read a scorer, in eval mode on the CPU.

    Args:
        source: name of a bundled checkpoint, a directory, or a Hub id "user/name".
        download: passed on to `huggingface_hub.hf_hub_download` (revision, token, cache_dir, ...).

    Raises:
        ValueError: nothing of the kind is there, or it is damaged or of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = find(source, **download)
    try:
        config = parse((folder / FILES[0]).read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise ValueError(f"format {config['format']}, written by vlmopt {config['vlmopt']}; upgrade vlmopt")
        tensors = load_file(folder / FILES[1])
        if damaged := sorted(name for name, value in tensors.items() if not bool(value.isfinite().all())):
            raise ValueError(f"not all numbers are finite in {', '.join(damaged)}")
        marker = tensors.pop("marker", None)
        with torch.device("meta"):  # the widths that a file states cost nothing before its weights fit them
            scorer = Scorer(config["dim"], config["heads"], config["pooling"])
        dtype = next(iter(tensors.values())).dtype
        weights = {name.removeprefix("scorer."): value.to(dtype) for name, value in tensors.items()}
        scorer.load_state_dict(weights, assign=True)
        if marker is not None and marker.shape != (scorer.dim,):
            raise ValueError(f"the marker must have the width {scorer.dim}, got {tuple(marker.shape)}")
        model = {key: config["model"][key] for key in ("family", "model_type", "hidden_size", "name_or_path")}
        model["fingerprint"] = [float(value) for value in config["model"]["fingerprint"]]
        if not torch.tensor(model["fingerprint"], dtype=torch.float32).isfinite().all():
            raise ValueError("the fingerprint must be finite numbers")
        return TrainedScorer(scorer.eval().requires_grad_(False), marker, model, config.get("trained_with", {}))
    except (KeyError, TypeError, StopIteration, OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"scorer {source!r} in {folder} cannot be read: {type(error).__name__}: {error}") from error


def push_to_hub(trained: TrainedScorer, repo_id: str, **options: Any) -> str:
    """Upload both files to a Hub repository, made if missing; return the address of the commit.

    Args:
        options: private and token, and what `HfApi.upload_folder` takes (revision, commit_message, ...).
    """
    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None))
    repo = api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save(trained, folder)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, **options))


def is_folder(source: str) -> bool:
    """Return whether a source is a directory of this machine, not a name that means the same everywhere."""
    return source not in bundled() and os.path.isdir(source)


def bundled() -> list[str]:
    """Return the checkpoints of the package that come with a scorer."""
    return sorted(path.parent.name for path in HERE.glob(f"*/{FILES[0]}"))


def find(source: str, **download: Any) -> Path:
    """Return the directory with the files of a source; those of a Hub repository are fetched."""
    folder = HERE / source if source in bundled() else Path(source)
    if all(os.path.isfile(folder / file) for file in FILES):  # pathlib raises where a name is too long
        return folder
    if os.path.exists(source):
        raise ValueError(f"scorer {source!r}: the directory must hold {FILES[0]} and {FILES[1]}")
    local = f"scorer {shown(source)} is not a directory, nor bundled ({', '.join(bundled()) or 'none'})"
    if not is_hub_id(source):
        raise ValueError(f"{local}, and no Hub id (owner/name)")
    from huggingface_hub import hf_hub_download

    options = hub.download(**download)
    try:
        first, _ = (Path(hf_hub_download(source, file, **options)) for file in FILES)
        return first.parent
    except (OSError, ValueError) as error:  # network, missing repository or file
        raise ValueError(
            f"{local}, and cannot be had from the Hub under that name: {hub.reason(error, options)}"
        ) from error
