"""What to apply to a model: an immutable, checked list of methods that reads and writes as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vlmopt.attention_fix import Correction
from vlmopt.core import Configured, shown
from vlmopt.pruning import Selector

from .. import methods
from ..core import near
from ..decoding import Decoding
from ..kernels.patterns import Pattern
from ..kv import Eviction
from ..prefill import SparsePrefill
from ..reading import SparseReading
from ..version import __version__
from . import files
from .combinations import check_corrections, check_decoding, check_eviction, check_reading, check_stages, cuts, order
from .parts import check_format, entries, eviction_of, methods_of, only, prefill_of, reading_of
from .tuned import note

FORMAT = 2  # 1 has no "kv", "read", "decoding" and "gqa"
KEYS = ["format", "vlmopt", "prune", "attention", "prefill", "kv", "read", "decoding", "gqa", "seed", "tuned"]
GQA = ("auto", "grouped", "kernel")

LISTS = ("prune", "attention", "decoding")

KINDS = (Selector, Correction, Pattern, SparsePrefill, Eviction, SparseReading, Decoding)


@dataclass(frozen=True)
class Policy(Configured):
    """Which methods run, and the seed of everything random in them. `Policy()` changes nothing, it only measures.

    Args:
        prune: selectors, at most one per decoder layer; stored sorted by layer.
        attention: corrections.
        prefill: sparse prefill of long prompts: `SparsePrefill`, a pattern for all heads, their dict form, or None.
        seed: >= 0.
        kv: eviction of keys and values when the prompt is over, its dict form, or None.
        read: sparse reading of long contexts while decoding, its dict form, or None.
        decoding: what changes the logits of every step, in this order: at most one contrast, and controls.
        gqa: how one query row attends where heads share keys. "kernel": by the model's own; "grouped": heads of a group
            as rows of one head; "auto": grouped under sdpa on a CPU over long contexts, if the policy changes anything.
        tuned: the note of `vlmopt tune`, which changes nothing.

    Raises:
        TypeError: an entry of the wrong kind. ValueError: a combination that cannot work.
    """

    prune: Sequence[Selector] = ()
    attention: Sequence[Correction] = ()
    prefill: SparsePrefill | None = None
    seed: int = 0
    kv: Eviction | None = None
    read: SparseReading | None = None
    decoding: Sequence[Decoding] = ()
    gqa: str = "auto"
    tuned: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        prune = entries("prune", self.prune, Selector)
        object.__setattr__(self, "prune", tuple(sorted(prune, key=order)))
        object.__setattr__(self, "attention", entries("attention", self.attention, Correction))
        object.__setattr__(self, "prefill", prefill_of(self.prefill))
        object.__setattr__(self, "kv", eviction_of(self.kv))
        object.__setattr__(self, "read", reading_of(self.read))
        object.__setattr__(self, "decoding", entries("decoding", self.decoding, Decoding))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(
                f"seed must be a whole number >= 0, got {shown(self.seed)} of type {type(self.seed).__name__}"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be >= 0 and < 2**63, got {shown(self.seed)}")
        if self.gqa not in GQA:
            raise ValueError(f"gqa must be one of {', '.join(GQA)}; got {shown(self.gqa)}{near(str(self.gqa), GQA)}")
        note(self.tuned)
        check_stages(self.prune)
        check_corrections(self.attention)
        check_eviction(self.kv, self.attention)
        check_reading(self.read, self.kv, self.attention)
        check_decoding(self)

    @property
    def corrections(self) -> list[Correction]:
        """Every correction that can change something, in the policy's order."""
        return [correction for correction in self.attention if not correction.is_identity]

    @property
    def active(self) -> list[Selector]:
        """Every cut that can change something, by rising layer; a progressive method makes several."""
        return cuts(self.prune)

    @property
    def sparse(self) -> SparsePrefill | None:
        """The sparse prefill, if it can leave out something."""
        return None if self.prefill is None or self.prefill.is_identity else self.prefill

    @property
    def eviction(self) -> Eviction | None:
        """The eviction, if keys can leave by it when the prompt is over."""
        return None if self.kv is None or self.kv.is_identity else self.kv

    @property
    def reading(self) -> SparseReading | None:
        """The sparse reading, if layers can leave out keys by it."""
        return None if self.read is None or self.read.is_identity else self.read

    @property
    def steps(self) -> list[Decoding]:
        """Every step of decoding that can change something, in the policy's order."""
        return [step for step in self.decoding if not step.is_identity]

    @property
    def changes(self) -> bool:
        """Whether anything is pruned, corrected, left out or evicted, or logits are changed."""
        return bool(self.active or self.corrections or self.sparse or self.eviction or self.reading or self.steps)

    @classmethod
    def load(cls, source: PolicyLike, *, paths: bool = True) -> Policy:
        """Make a policy from any of its forms.

        Args:
            source: a preset's name, a path (file, or directory with `vlmopt_policy.json`), JSON text, a line such as
                "fastv:keep_ratio=0.1,layer=4", a dict, a method, a list of methods, or a `Policy`.
            paths: False where no file may be opened on the word of whoever names it, such as a server's client.

        Raises:
            TypeError, ValueError: none of these, or not valid; a file written in a newer format.
        """
        if isinstance(source, Policy):
            return source
        if isinstance(source, KINDS):
            return cls.of([source])
        if isinstance(source, Mapping):
            return cls.of([methods.build(source)]) if "method" in source else cls.from_dict(source)
        if isinstance(source, (list, tuple)):
            return cls.of([methods.build(m) if isinstance(m, Mapping) else m for m in source])
        if isinstance(source, str):
            return cls.built(files.named(source, paths))
        if paths and isinstance(source, os.PathLike):
            return cls.built(files.read(Path(source)))
        raise TypeError(
            "a policy must be a preset name, a path, JSON, a dict, a method, a list of methods or a Policy, "
            f"got {shown(source)} of type {type(source).__name__}"
        )

    @classmethod
    def built(cls, written: files.Written) -> Policy:
        """Build a policy that was read; errors name its file."""
        if written.path is None:
            return cls.load(written.data)
        try:
            return cls.from_dict(written.data)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{written.path}: {error}") from error

    @classmethod
    def of(cls, items: Sequence[Any]) -> Policy:
        """Make a policy of selectors, corrections, steps of decoding, and one pattern, eviction and reading at most."""
        for item in items:
            if not isinstance(item, KINDS):
                kinds = "selectors, corrections, steps of decoding, a pattern, an eviction and sparse reading"
                raise TypeError(f"a list may hold {kinds}, got {shown(item)} of type {type(item).__name__}")
        return cls(
            prefill=prefill_of(only(items, (Pattern, SparsePrefill), "pattern for the prefill")),
            kv=only(items, Eviction, "eviction"),
            read=only(items, SparseReading, "way of reading"),
            prune=tuple(item for item in items if isinstance(item, Selector)),
            attention=tuple(item for item in items if isinstance(item, Correction)),
            decoding=tuple(item for item in items if isinstance(item, Decoding)),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """Make a policy from what `to_dict` returns; every key may be missing."""
        check_format(data, KEYS, FORMAT)
        lists: dict[str, Any] = {key: methods_of(key, data.get(key, [])) for key in LISTS}
        plain = {key: data[key] for key in ("prefill", "seed", "kv", "read", "gqa", "tuned") if key in data}
        return cls(**lists, **plain)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; methods carry the settings that differ from their defaults."""
        return {
            "format": FORMAT,
            "vlmopt": __version__,
            "prune": [methods.to_dict(method) for method in self.prune],
            "attention": [methods.to_dict(method) for method in self.attention],
            "prefill": None if self.prefill is None else self.prefill.to_dict(),
            "kv": None if self.kv is None else methods.to_dict(self.kv),
            "read": None if self.read is None else self.read.to_dict(),
            "decoding": [methods.to_dict(method) for method in self.decoding],
            "gqa": self.gqa,
            "seed": self.seed,
            **({} if self.tuned is None else {"tuned": dict(self.tuned)}),
        }

    def to_json(self) -> str:
        return files.as_json(self.to_dict())

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path:
        """Write `vlmopt_policy.json` into a directory, which is made if missing; return the file's path.

        Trained weights that methods name by a directory are copied beside it and named relative to it.
        """
        return files.save(self.to_dict(), Path(save_directory))

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **download: Any) -> Policy:
        """Read the policy of a directory, or else of a Hub repository.

        Args:
            source: directory, or repository id "user/name".
            download: passed on to `huggingface_hub.hf_hub_download` (revision, token, cache_dir, ...).

        Raises:
            ValueError: neither holds a valid policy.
        """
        if os.path.exists(source):
            return cls.built(files.read(Path(source)))
        return cls.built(files.download(str(source), **download))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload vlmopt policy",
    ) -> str:
        """Upload what `save_pretrained` writes to a Hub repository, made if missing; return the commit's address."""
        commit = {"revision": revision, "commit_message": commit_message}
        return files.upload(self.to_dict(), repo_id, private, token, **commit)


# Not written as a string, which `typing.get_type_hints` would look up where it is used.
PolicyLike: TypeAlias = (
    Policy | methods.Method | SparsePrefill | SparseReading | str | os.PathLike[str] | Mapping[str, Any] | list[Any]
)
