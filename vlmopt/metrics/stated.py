"""Read what an answer states in the end: no reasoning, no markup, no lead-in. Every kind of answer is read so.

A model that was pruned may change its style and say the same; only what it says is marked. The rules of published
scorers, which read the words as they stand, keep names of their own (`metrics.pope.PARSERS`).
"""

from __future__ import annotations

import json
import re

THOUGHTS = "think|thinking|thought|thoughts|reasoning|reason|analysis|scratchpad"
# Also [THINK] of Mistral and ◁think▷ of Kimi.
OPEN, CLOSE = rf"(?:<(?:{THOUGHTS})>|\[THINK\]|◁think▷)", rf"(?:</(?:{THOUGHTS})>|\[/THINK\]|◁/think▷)"
THOUGHT = re.compile(rf"{OPEN}.*?{CLOSE}", re.DOTALL | re.IGNORECASE)
ENVELOPES = (
    re.compile(r"<(answer|final_answer|final)>(?P<inner>.*?)(?:</\1>|$)", re.DOTALL | re.IGNORECASE),
    re.compile(r"<\|begin_of_box\|>(?P<inner>.*?)(?:<\|end_of_box\|>|$)", re.DOTALL),
    re.compile(r"\\f?boxed\s*\{(?P<inner>[^{}]*)\}"),
)
KEYS = ("answer", "final_answer", "prediction", "choice", "option", "response", "result", "output")
FENCE = re.compile(r"```[\w-]*\s*\n?(.*?)(?:```|$)", re.DOTALL)
INNER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|bm|operatorname)\s*\{([^{}]*)\}")
FORMULA = re.compile(r"\\[()\[\]]|\$\$|\$(?=\S)(?P<inner>[^$\n]+?)(?<=\S)\$(?!\d)")
STRESS = (
    re.compile(r"(\*{2,3}|~~)(?=\S)(?P<inner>.+?)(?<=\S)\1"),
    re.compile(r"(`+)(?P<inner>[^`\n]+)\1"),
    re.compile(r"(?<![\w*_])([*_]{1,3})(?=\S)(?P<inner>[^*_\n]+?)(?<=\S)\1(?![\w*_])"),
)
TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<\|[^<>|]*\|>")
LINE = re.compile(r"^\s*(?:#{1,6}\s+|>\s?|[-*+•]\s+)", re.MULTILINE)
CUE = re.compile(
    r"(?:^(?:final\s+)?answer[ \t]*\n|\banswer\b\s*(?:to\b[^.:\n]{0,60}?)?"
    r"(?:(?:['’]s|is|would\s+be|should\s+be|must\s+be)\b\s*[:：]?|[:：=])|答案\s*(?:是|为|应该是|应为)?\s*[:：]?)\s*",
    re.IGNORECASE | re.MULTILINE,
)


def without_reasoning(answer: str) -> str:
    """Return the answer behind its thoughts; "" where they were cut off before any answer."""
    text = THOUGHT.sub(" ", answer)
    text = re.split(CLOSE, text, flags=re.IGNORECASE)[-1]  # the prompt may have opened it
    return re.split(OPEN, text, maxsplit=1, flags=re.IGNORECASE)[0].strip()


def unwrapped(answer: str) -> str:
    """Return what the last tag, box or JSON object for the answer holds; else the answer, without reasoning."""
    text = without_reasoning(answer)
    while (plainer := INNER.sub(r"\1", text)) != text:
        text = plainer
    for envelope in ENVELOPES:
        if found := list(envelope.finditer(text)):
            return found[-1]["inner"].strip()
    return _from_json(text) or text


def words(answer: str) -> str:
    """Return `unwrapped` without markup: emphasis, headings, lists, code, formulas, tags; lines stay lines."""
    text = LINE.sub("", TAG.sub("", FENCE.sub(r"\1", unwrapped(answer))))
    text = FORMULA.sub(lambda found: found["inner"] or "", text)
    for mark in STRESS:
        text = mark.sub(lambda found: found["inner"], text)
    return text.strip().strip("*`").strip()  # what a limit of tokens left open


def concluded(text: str) -> str | None:
    """Return what follows the last "the answer is", to the end of its line; None where nobody says so."""
    found = [text[cue.end() :].strip() for cue in CUE.finditer(text)]
    lines = [rest.splitlines()[0].strip() for rest in found if rest]
    return lines[-1] if lines else None


def stated(answer: str) -> str:
    """Return the last stated answer, in plain words."""
    text = words(answer)
    return concluded(text) or text


def _from_json(text: str) -> str | None:
    """Return the answer of a JSON object, in a code fence or bare."""
    fenced = FENCE.search(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    held = {str(key).casefold(): entry for key, entry in value.items()} if isinstance(value, dict) else {}
    found = next((held[key] for key in KEYS if isinstance(held.get(key), (str, int, float))), None)
    if isinstance(found, bool):
        return "yes" if found else "no"
    return None if found is None else str(found)
