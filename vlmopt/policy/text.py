"""A policy in one line, for tables and titles."""

from __future__ import annotations

from typing import Any


def summary(policy: dict[str, Any]) -> str:
    """Write a policy's dict form in one line: `uniform(keep_ratio=0.25)`."""
    prefill, sparse = policy["prefill"], []
    if prefill is not None:
        pattern = prefill.get("pattern", {"method": "min_p"})  # records of before may have none
        sparse = ["sparse prefill by " + ("a pattern per head" if "heads" in prefill else call(pattern))]
    methods = [call(method) for method in (*policy["prune"], *policy["attention"])]
    evicted = [] if policy["kv"] is None else [call(policy["kv"])]
    if policy.get("read") is not None:  # records of before have none
        evicted.append("sparse reading")
    steps = [call(method) for method in policy.get("decoding", ())]
    return " + ".join(methods + sparse + evicted + steps) or "nothing is changed, only measured"


def call(method: dict[str, Any]) -> str:
    """Write a method's dict form as in Python; what is nested in it, too."""
    settings = {k: call(v) if isinstance(v, dict) and "method" in v else v for k, v in method.items() if k != "method"}
    shown = (f"{k}=..." if isinstance(v, dict) else f"{k}={v}" for k, v in settings.items())  # a whole profile
    return f"{method['method']}({', '.join(shown)})"
