"""The base of mix-ins before classes of vLLM, whose methods call on what stands behind them."""

from __future__ import annotations

from typing import Any

Behind: Any = object  # a type checker takes it for a class that may have any method
