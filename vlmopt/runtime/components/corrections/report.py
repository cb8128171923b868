"""What corrections did in one call, from the tensors that they left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmopt.attention_fix import Correction, Diagnosis

from ...call import Call
from .layer import Record, Records


def corrected(call: Call, corrections: Sequence[Correction]) -> list[dict[str, Any]]:
    """Return one entry for each of the corrections that ran.

    `layers` has one entry per layer: `rows` text rows of the prompts that it might edit, `edited` the share of (row,
    head) pairs that it changed, the same of generated rows (those of all beams), `heads` how many heads of each sample
    got another gain, and what the method measured. None where nothing of the kind happened. `found` is what a diagnosis
    found in each sample.
    """
    out = []
    for correction in corrections:
        found = {layer: record for (name, layer), record in call.slot(Records).items() if name == correction.name}
        if found:
            edits = {} if isinstance(correction, Diagnosis) else found
            layers = [{"layer": layer} | of_layer(record, call.once) for layer, record in sorted(edits.items())]
            entry = {"method": correction.name, "source": correction.source, "layers": layers}
            out.append(entry | {"found": heard(call, correction)})
    return out


def heard(call: Call, correction: Correction) -> list[dict[str, Any]]:
    """Return the findings of a diagnosis, one per sample of the batch; empty for any other correction.

    Their tokens get a "cell" [image, frame, row, column] where they are patches, None elsewhere.
    """
    record = call.slot(Records).get((correction.name, 0))
    if record is None or record.listening is None:
        return []
    batch, width = call.page.query_lengths[-1]
    names: list[dict[int, str]] = [{} for _ in range(batch)]
    cells: list[dict[int, list[int]]] = [{} for _ in range(batch)]
    image = torch.zeros(batch, width, dtype=torch.bool)
    for context in call.page.contexts:  # a single one: prompts that come in parts are not diagnosed
        image = context.visual
        for span in context.spans:
            coords = dict(zip(span.index.tolist(), span.coords.tolist(), strict=True))
            names[span.batch_row] |= {place: coordinates(span.kind, span.item, cell) for place, cell in coords.items()}
            cells[span.batch_row] |= {place: [span.item, *cell] for place, cell in coords.items() if min(cell) >= 0}
    found = record.listening.found(image, names)
    for sample, known in zip(found, cells, strict=True):
        for token in sample["tokens"]:
            token["cell"] = known.get(token["place"])
    return found[call.once]


def coordinates(kind: str, item: int, cell: list[int]) -> str:
    """Return " image 0 (row 3, column 4)", with the frame of a video; without these where it is not a patch."""
    frame, row, column = cell
    if min(cell) < 0:
        return f"{kind} {item}"
    return f"{kind} {item} (" + (f"frame {frame}, " if kind == "video" else "") + f"row {row}, column {column})"


def of_layer(record: Record, once: slice) -> dict[str, Any]:
    gain = None if record.gain is None else record.gain[once]
    return {
        "rows": 0 if record.rows is None else int(record.rows[once].sum()),
        "edited": share(record.edited, record.rows),
        "generated_rows": record.steps * (0 if record.generated is None else len(record.generated)),
        "generated_edited": share(record.generated, record.steps),
        "heads": None if gain is None else [int(n) for n in (gain != 1).sum(1)],
        "gain": None if gain is None else [[round(float(g), 4) for g in row] for row in gain],
        **averaged(record.measured),
    }


def share(edited: Tensor | None, rows: Tensor | int | None) -> float | None:
    """Return the fraction of the offered (row, head) pairs that were edited; `rows` counts per sample."""
    if edited is None or rows is None:
        return None
    offered = float(rows.sum() if isinstance(rows, Tensor) else rows * len(edited)) * edited.shape[1]
    return float(edited.sum()) / offered if offered else None


def averaged(measured: list[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, float]:
    """Return the mean of every scalar over the pieces in which rows went through, weighted by their rows."""
    weights = [float(rows) for rows, _ in measured]
    names = measured[0][1] if measured else ()
    pairs = [(weight, values) for weight, (_, values) in zip(weights, measured, strict=True)]
    return {name: sum(w * float(values[name]) for w, values in pairs) / max(sum(weights), 1) for name in names}


def lines(entries: list[dict[str, Any]]) -> list[str]:
    """Write the entries as lines of the report's table."""
    out = []
    for entry in entries:
        layers = entry["layers"]
        out += [f"found    {entry['method']}, sample {b}: {found['summary']}" for b, found in enumerate(entry["found"])]
        if not layers:
            continue
        text = f"applied  {entry['method']} in {len(layers)} layers"
        for key, words in (("edited", "of prompt"), ("generated_edited", "of generated")):
            values = [layer[key] for layer in layers if layer[key] is not None]
            if values:
                text += f"; {100 * sum(values) / len(values):.1f} % {words} rows and heads edited"
        if any(layer["heads"] for layer in layers):
            counts = [n for layer in layers for n in layer["heads"] or ()]
            text += f"; {sum(counts) / len(counts):.1f} heads per layer scaled"
        names = sorted({name for layer in layers for name in layer} - FIXED)
        for name in names:
            values = [layer[name] for layer in layers if name in layer]
            text += f"; {name} {sum(values) / len(values):.3g}"
        out.append(text + (f"; {entry['source']}" if entry["source"] else ""))
    return out


FIXED = {"layer", "rows", "edited", "generated_rows", "generated_edited", "heads", "gain"}
