"""The report of one call: what ran where, what was skipped and why, tokens, keys, milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ..offload import device_of
from ..runtime import compat
from ..runtime.call import Call
from ..runtime.component import Account, Components
from .accounting import VisualMap, maps, token_counts
from .stages import Stage, stages


@dataclass(frozen=True)
class Report:
    """What the last `generate` (or bare forward) did. `str()` is a table, `to_dict()` is JSON-ready.

    Times are in milliseconds, memory in bytes. `ms["vision"]` is the tower with its projector, `ms["scoring"]` the
    selectors and what is read for them, `ms["prefill"]` the decoder without scoring, `ms["ttft"]` the time from the
    start of `generate` to the first logits, `ms["decode"]` the time from there to the end; None where a stage did not
    run. Tokens, keys and the first three times belong to the prompt that was asked for. A sample is a prompt, however
    many copies of it beams or `num_return_sequences` make; bytes and times are those of all copies. What runs beside
    the prompt (the unconditional sequence of a guidance scale) or again (without a cache) counts as decoding. The cache
    of a second stream is not in `kv_cache_bytes`; it stands in `decoding`, with what was generated. An assistant model
    runs one `generate` per round: its report is of the last. `peak_memory_bytes` is torch's count on
    the GPU since it was last reset, not of this call alone.
    """

    family: str
    model_type: str
    attn_implementation: str
    dtype: str
    device: str
    policy: dict[str, Any]
    samples: list[dict[str, Any]]
    key_lengths: list[int]
    kv_cache_bytes: int
    kv_bytes_prompt: int  # of the prompt's cache before keys were evicted
    ms: dict[str, float | None]
    new_tokens: int
    decode_tokens_per_s: float | None
    peak_memory_bytes: int | None
    skipped: list[dict[str, str]]
    tower: dict[str, int] | None = None  # patches "given" and "encoded", where a method chose before the tower
    applied: list[dict[str, Any]] = field(default_factory=list)
    corrections: list[dict[str, Any]] = field(default_factory=list)
    prefill: list[dict[str, Any]] = field(default_factory=list)  # layers whose prompt attention was sparse
    kv: list[dict[str, Any]] = field(default_factory=list)  # layers that evicted keys
    read: list[dict[str, Any]] = field(default_factory=list)  # keys that layers read for the last token, where sparsely
    decoding: list[dict[str, Any]] = field(default_factory=list)  # steps; passes, rows and cache of a second stream
    repeating: list[int] | None = None  # samples whose text repeats itself; None where nothing watches
    token_divergence: list[list[float]] | None = None  # T-VHD per sample and generated token, where it is traced
    _applied: list[str] = field(default_factory=list, repr=False, compare=False)
    _rows: torch.Tensor | None = field(default=None, repr=False, compare=False)
    _maps: dict[int, list[VisualMap]] = field(default_factory=dict, repr=False, compare=False)
    _stages: dict[int, list[Stage]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, call: Call) -> Report:
        """Make the report from the raw times and tensors of a finished call."""
        session, ledger = call.session, call.ledger
        device = device_of(session.model)
        ms, rows = milliseconds(call), range(call.once.stop)[call.once]
        shown = {index: maps(call, row) for index, row in enumerate(rows)}
        decode = ms["decode"]
        accounts = [component.report(call) for component in session.slot(Components)]
        entries = {name: value for account in accounts for name, value in account.entries.items()}
        gone = sum(own["bytes_before"] - own["bytes_after"] for own in entries.get("kv", ()))
        return cls(
            family=session.family.name
            if session.family.described
            else f"{session.family.name} (undescribed: generic path)",
            model_type=str(session.model.config.model_type),
            attn_implementation=compat.implementation(session.structure.config),
            dtype=str(next(session.model.parameters()).dtype).removeprefix("torch."),
            device=str(device),
            policy=session.policy.to_dict(),
            samples=[{"row": index} | token_counts(call, row, shown[index]) for index, row in enumerate(rows)],
            key_lengths=list(call.page.key_lengths),
            kv_cache_bytes=call.page.cache_bytes,
            kv_bytes_prompt=call.page.cache_bytes + gone,
            ms=ms,
            new_tokens=ledger.new_tokens,
            decode_tokens_per_s=(ledger.new_tokens - ledger.first_tokens) / decode * 1e3 if decode else None,
            peak_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            skipped=skipped(call, accounts),
            **entries,
            _applied=[line for account in accounts for line in account.lines],
            _rows=call.page.rows_left() if call.page.left else None,
            _maps=shown,
            _stages={index: stages(call, row) for index, row in enumerate(rows)},
        )

    def maps(self, sample: int = 0) -> list[VisualMap]:
        """Return one `VisualMap` per image, tile or video of one sample; empty for a text-only sample."""
        if sample not in self._maps:
            raise ValueError(f"sample={sample} is not in this report, which has samples 0 to {len(self._maps) - 1}")
        return self._maps[sample]

    def rows(self) -> torch.Tensor:
        """Return Bool[B, L]: rows of the prompt whose hidden states came out of the last layer.

        False where a token was dropped, whose rows of `last_hidden_state` and of logits are zeros, and on padding. A
        pooling over rows (a mean, late interaction) has to leave those out. B is that of the outputs, copies for beams
        among it.

        Raises:
            ValueError: no prompt ran in this call.
        """
        if self._rows is None:
            raise ValueError(
                "no prompt ran in this call, so it has no rows: call model(**inputs) or model.generate(**inputs) first"
            )
        return self._rows

    def stages(self, sample: int = 0) -> list[Stage]:
        """Return what every cut left of one sample, with maps of its own; empty where nothing was pruned."""
        self.maps(sample)
        return self._stages[sample]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts, numbers and strings."""
        return {f.name: copy.deepcopy(getattr(self, f.name)) for f in fields(self) if f.name[0] != "_"}

    def applied_lines(self) -> list[str]:
        """Write one line per thing that was done, in the words of the component that did it."""
        return list(self._applied)

    def skipped_lines(self) -> list[str]:
        """Write one line per thing that did not happen, with the reason."""
        return [f"skipped  {s['what']}: {s['why']}" for s in joined(self.skipped)]

    def __str__(self) -> str:
        lines = [f"{self.family} · {self.attn_implementation} · {self.dtype} · {self.device}"]
        lines.append(
            f"{'sample':>6} {'prompt':>7} {'visual':>7} {'pre-LLM':>7} {'kept':>6} {'layer avg':>9} {'markers':>7} "
            f"{'merged':>6} {'structural':>10}"
        )
        for s in self.samples:
            lines.append(
                f"{s['row']:>6} {s['prompt_tokens']:>7} {s['visual_tokens']:>7} {s['visual_tokens_pre_llm']:>7} "
                f"{s['visual_tokens_kept']:>6} {s['layer_average']:>9.1f} {s['markers']:>7} {s['extras']['merged']:>6} "
                f"{s['extras']['structural']:>10}"
            )
        lines += self.applied_lines() + self.skipped_lines()
        lines.append("keys     " + runs_of(self.key_lengths) + f"  ({self.kv_cache_bytes / 2**20:.2f} MiB)")
        lines.append(
            "time     " + "  ".join(f"{name} {value:.1f} ms" for name, value in self.ms.items() if value is not None)
        )
        if self.decode_tokens_per_s is not None:
            lines.append(f"decode   {self.new_tokens} new tokens, {self.decode_tokens_per_s:.1f} tokens/s per sequence")
        if self.peak_memory_bytes is not None:
            lines.append(f"memory   peak {self.peak_memory_bytes / 2**20:.0f} MiB allocated")
        return "\n".join(lines)


def milliseconds(call: Call) -> dict[str, float | None]:
    ledger, page = call.ledger, call.page
    ms = ledger.clock.ms

    def total(pairs: list[tuple[Any, Any]]) -> float:
        return sum(ms(start, end) for start, end in pairs)

    scoring, in_tower = total(page.scoring), total(page.in_tower)
    first, end = ledger.first_token, ledger.end
    return {
        "vision": total(page.vision) - in_tower if page.vision else None,
        "scoring": scoring + in_tower if page.scoring or page.in_tower else None,
        "prefill": total(page.prefill) - scoring if page.prefill else None,
        "decode": ms(first, end) if first is not None and ledger.decode_steps else None,
        "ttft": ms(ledger.start, first) if first is not None else None,
        "total": ms(ledger.start, end) if end is not None else None,
    }


def skipped(call: Call, accounts: Sequence[Account]) -> list[dict[str, str]]:
    """Return what did not happen in a call, with the reasons."""
    policy, found = call.session.policy, list(call.ledger.skipped.items())
    found += [(m.name, "changes nothing at keep_ratio=1.0") for m in policy.prune if m.is_identity]
    found += [(c.name, c.idle or "changes nothing at these settings") for c in policy.attention if c.is_identity]
    if policy.prefill is not None and policy.prefill.is_identity:
        found.append(("sparse prefill", "changes nothing: its patterns keep every key"))
    if policy.kv is not None and policy.kv.is_identity:
        found.append((policy.kv.name, "changes nothing at keep_ratio=1.0"))
    if policy.read is not None and policy.read.is_identity:
        found.append(("sparse reading", "changes nothing at keep_ratio=1.0"))
    found += [(s.name, "changes nothing at these settings") for s in policy.decoding if s.is_identity]
    found += [entry for account in accounts for entry in account.skipped.items()]
    return [{"what": what, "why": why} for what, why in found]


def joined(skipped: list[dict[str, str]]) -> list[dict[str, str]]:
    """Merge entries "... in layer N" that have the same reason."""
    out: dict[tuple[str, str], list[str]] = {}
    for entry in skipped:
        what, found, layer = entry["what"].partition(" in layer ")
        out.setdefault((what if found else entry["what"], entry["why"]), []).extend([layer] if found else [])
    return [
        {"what": f"{what} in layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}" if layers else what, "why": why}
        for (what, why), layers in out.items()
    ]


def runs_of(lengths: list[int]) -> str:
    """Write [9, 9, 4, 4, 4] as "9 x 2 layers, 4 x 3 layers"."""
    groups: list[list[int]] = []
    for length in lengths:
        if groups and groups[-1][0] == length:
            groups[-1][1] += 1
        else:
            groups.append([length, 1])
    return ", ".join(f"{length} x {count} layers" for length, count in groups)
