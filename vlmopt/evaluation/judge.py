"""Marks of open answers by a judge of the user's own: any command that reads answers and prints scores.

judged.jsonl   first {command}, then one line per answer: {key, score}; a run that is judged again goes on there
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..atomic import atomic_write
from .records import Record, read

NAME = "judged.jsonl"
BATCH = 32  # answers that one start of the command gets; a failure costs no more
PATIENCE = 3600  # seconds for these
KIND = "open"


def judge(run: Path, command: str) -> int:
    """Have a command mark the open answers of a run; return how many it was asked.

    The command gets one JSON object a line (`id`, `question`, `image`, `reference`: a text, several or null, `answer`)
    and prints one line each: a number from 0 to 1, or an object with that as `score`. An answer that several policies
    gave is judged once. Another command than before judges everything anew.

    Raises:
        ValueError: the command cannot be started, fails, or prints anything else; what it marked before is saved.
    """
    words = shlex.split(command)
    if not words:
        raise ValueError("--judge is empty; give a command that reads answers and prints scores")
    before, scores = load(run)
    asked = {
        key_of(record): told(record) for record in read(run) if record.kind == KIND and record.prediction is not None
    }
    done = {key: score for key, score in scores.items() if before == command and key in asked}
    todo = [key for key in asked if key not in done]
    for start in tqdm(range(0, len(todo), BATCH), desc="judging", unit="batch", disable=not todo):
        keys = todo[start : start + BATCH]
        done |= dict(zip(keys, answered(words, [asked[key] for key in keys]), strict=True))
        lines = [{"command": command}, *({"key": key, "score": score} for key, score in done.items())]
        with atomic_write(run / NAME) as fresh:
            fresh.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(todo)


def load(run: Path) -> tuple[str | None, dict[str, float]]:
    """Return the command and the scores by key of a run that was judged; (None, {}) of another.

    Raises:
        ValueError: the file is damaged.
    """
    path = run / NAME
    if not path.exists():
        return None, {}
    try:
        head, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return head["command"], {row["key"]: float(row["score"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and judge again") from error


def with_scores(records: Iterable[Record], scores: Mapping[str, float]) -> list[Record]:
    """Return the records, those that were judged with `judged` among their metrics."""
    return [
        replace(record, metrics={**record.metrics, "judged": scores[key]})
        if record.kind == KIND and (key := key_of(record)) in scores
        else record
        for record in records
    ]


def told(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "question": record.question,
        "image": record.image,
        "reference": record.answer,
        "answer": record.prediction,
    }


def key_of(record: Record) -> str:
    return hashlib.sha256(json.dumps(told(record), sort_keys=True).encode()).hexdigest()[:24]


def answered(words: Sequence[str], asked: Sequence[Mapping[str, Any]]) -> list[float]:
    """Start the command on some answers; return its scores."""
    name, lines = shlex.join(words), "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in asked)
    try:
        done = subprocess.run(
            words, input=lines, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"--judge {name} cannot be run: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ValueError(
            f"--judge {name} failed with code {done.returncode}: {said[-1] if said else 'it said nothing'}"
        )
    printed = [line for line in done.stdout.splitlines() if line.strip()]
    if len(printed) != len(asked):
        raise ValueError(f"--judge {name} printed {len(printed)} lines for {len(asked)} answers; one each is needed")
    return [score(line, name) for line in printed]


def score(line: str, name: str) -> float:
    try:
        value = json.loads(line)
        value = value["score"] if isinstance(value, dict) else value
        found = float(value)
    except (ValueError, KeyError, TypeError):
        found = -1.0
    if not 0 <= found <= 1:
        raise ValueError(f"--judge {name} printed {line[:80]!r}; expected a number from 0 to 1, or {{'score': number}}")
    return found
