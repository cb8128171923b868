"""vlmopt: faster, smaller, less hallucinating vision-language models, without forking them."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .api import optimize, optimized, report, restore
    from .checkpoints import load_checkpoint
    from .diagnose import SinkReport, diagnose_sinks
    from .estimation import Estimate, estimate
    from .looking.ask import SecondLook, second_look
    from .policy import Policy
    from .policy.presets import presets
    from .reporting import Report
    from .tuning.result import TuneResult
    from .tuning.tuner import tune

# Public names and the module of each. A name is imported when it is first asked for (PEP 562), so that
# `import vlmopt.pruning` costs torch alone and `vlmopt --help` not even that.
_HOME = {
    "Estimate": "estimation",
    "Policy": "policy",
    "Report": "reporting",
    "SecondLook": "looking.ask",
    "SinkReport": "diagnose",
    "TuneResult": "tuning.result",
    "diagnose_sinks": "diagnose",
    "estimate": "estimation",
    "load_checkpoint": "checkpoints",
    "optimize": "api",
    "optimized": "api",
    "presets": "policy.presets",
    "report": "api",
    "restore": "api",
    "second_look": "looking.ask",
    "tune": "tuning.tuner",
}

__all__ = [
    "Estimate",
    "Policy",
    "Report",
    "SecondLook",
    "SinkReport",
    "TuneResult",
    "__version__",
    "diagnose_sinks",
    "estimate",
    "load_checkpoint",
    "optimize",
    "optimized",
    "presets",
    "report",
    "restore",
    "second_look",
    "tune",
]


# Three packages lie beside this folder in a checkout, and inside it where it is installed (setup.py). Python prefers a
# checkout that it is started in to what `pip install .` made of it.
if not Path(__file__).with_name("pruning").exists():
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        # With name and obj Python names what resembles it.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
