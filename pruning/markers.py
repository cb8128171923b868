"""What a PosPad marker may be made of, by the settings that every selector has."""

from __future__ import annotations

POSITIONS = ("keep", "repack", "pospad")
MARKERS = ("mean", "last", "trained")


def check_marker(label: str, marker: str, marker_from: str | None, layer: int, source: str | None) -> None:
    """Raise `ValueError` for a trained marker that is in the wrong place or comes from nowhere."""
    if marker != "trained" and marker_from is not None:
        raise ValueError(f"{label}: marker_from={marker_from!r} is of use with marker='trained' only")
    if marker == "trained" and layer > 0:
        raise ValueError(
            f"{label}: marker='trained' before layer {layer} cannot be used: the embedding was trained "
            "as an input of the LLM, for layer 0; use marker='mean' or 'last'"
        )
    if marker == "trained" and not source:
        raise ValueError(f"{label}: marker='trained' needs marker_from: a name, a directory or a Hub id")
