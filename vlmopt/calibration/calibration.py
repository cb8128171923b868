"""One calibration of one model: a first look for sinks at a few images, then trends and heads over all of them.

Captions of images whose objects are known come last, where they are asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from vlmopt.attention_fix import HeadProfile, SinkProfile
from vlmopt.pruning import ScoreSelector

from ..checks import model_facts
from ..choices import PARTS
from ..runtime.structure import structure_of
from .heads import HeadSums
from .iat import IATCollector
from .profile import Profile
from .sinks import PROMPTS, SinkCollector, readable_layers
from .trends import MISSING, Collector

NO_LOOK = "sinks were not asked for, so there is no first look; name 'sinks' or 'heads' in `parts`"


class Calibration:
    """Measure what `parts` name; `state()` can be written to a file and given back to go on.

    Attention on tokens that are not sinks can be summed only once the sinks are known, which is after the first look.
    So the first images are shown twice, and no attention is ever stored.

    Args:
        model: a loaded vision-language model. hosts: methods whose scores have a trend, for the part "debias".
        parts: of `PARTS`; "heads" takes "sinks" along. iat: what listens to captions; the caller shows it images.

    Raises:
        ValueError, TypeError: a part or host that cannot work on this model.
    """

    def __init__(
        self,
        model: nn.Module,
        hosts: Sequence[ScoreSelector],
        parts: Collection[str] = PARTS,
        state: Mapping[str, Any] | None = None,
        iat: IATCollector | None = None,
    ) -> None:
        structure, state = structure_of(model), state or {}
        self.facts = model_facts(model, structure)
        self.looked, self.seen = int(state.get("looked", 0)), int(state.get("seen", 0))
        wanted, self.iat = set(parts), iat
        if not (wanted or iat) or not wanted <= set(PARTS):
            raise ValueError(f"parts must be some of {', '.join(PARTS)}, got {', '.join(parts) or 'none'}")
        self.sinks = SinkCollector(model, state.get("sinks")) if wanted & {"sinks", "heads"} else None
        size = len(structure.layers), self.facts["num_heads"]
        self.heads = HeadSums(*size, readable_layers(model)) if "heads" in wanted else None
        trends = hosts if "debias" in wanted else ()
        self.collector = Collector(model, trends, state.get("sums"), self.heads) if wanted - {"sinks"} else None

    @property
    def begun(self) -> int:
        """Images so far; those of the first look count twice."""
        return self.looked + self.seen + (self.iat.done if self.iat else 0)

    def plan(self, total: int) -> tuple[int, int]:
        """Return how many of `total` images are shown in the first look, and how many afterwards."""
        return (min(PROMPTS, total) if self.sinks else 0), (total if self.collector else 0)

    def look(self, inputs: Mapping[str, Any]) -> None:
        """Show one prompt of the first look."""
        if self.sinks is None:
            raise ValueError(NO_LOOK)
        self.sinks.add(inputs)
        self.looked += 1

    def add(self, inputs: Mapping[str, Any]) -> None:
        """Show one prompt after the first look."""
        if self.collector is None:
            raise ValueError("sinks are found in the first look; no part was asked for that shows prompts after it")
        if self.heads is not None and not self.heads.tau:
            found = self.sink_profile("")
            self.heads.dims, self.heads.tau = found.dims, found.tau
        self.collector.add(inputs)
        self.seen += 1

    def sink_profile(self, name: str) -> SinkProfile:
        if self.sinks is None:
            raise ValueError(NO_LOOK)
        if not self.sinks.done:
            raise ValueError(MISSING)
        return self.sinks.profile(name)

    def head_profile(self, name: str) -> HeadProfile:
        if self.heads is None:
            raise ValueError("heads were not asked for; name them in `parts`")
        return self.heads.profile(self.facts | {"name_or_path": name})

    def state(self) -> dict[str, Any]:
        """Return the state, JSON-ready."""
        parts = {"sinks": self.sinks, "sums": self.collector, "iat": self.iat}
        states = {name: part.state() for name, part in parts.items() if part is not None}
        return {"looked": self.looked, "seen": self.seen, **states}

    def profile(self, name: str, data: str) -> Profile:
        """Return everything that was measured.

        Args:
            name: what the model is called. data: what was shown to it, in words.

        Raises:
            ValueError: no image was seen, or captions named too few objects.
        """
        facts = self.facts | {"name_or_path": name}
        sinks = None if self.sinks is None else self.sink_profile(name)
        if self.collector is not None and not self.collector.done:
            raise ValueError(MISSING)
        trends = () if self.collector is None else tuple(self.collector.profiles(name))
        heads = None if self.heads is None else self.head_profile(name)
        return Profile(facts, data, trends, sinks, heads, iat=self.iat.profile(name) if self.iat else None)
