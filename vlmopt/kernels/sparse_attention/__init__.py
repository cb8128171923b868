"""Attention over the keys that an index keeps: one primitive for every sparse pattern, several back-ends."""

from .backends import BACKENDS, chosen_backend, sparse_attention
from .index import Keys, Launch, SparseIndex
from .inputs import AttentionInputs
from .plan import plan_refusal, run_plan
from .validity import check_index

__all__ = [
    "BACKENDS",
    "AttentionInputs",
    "Keys",
    "Launch",
    "SparseIndex",
    "check_index",
    "chosen_backend",
    "plan_refusal",
    "run_plan",
    "sparse_attention",
]
