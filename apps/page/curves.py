"""The curves of a sweep as a drawing that stands alone, and its points as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from vlmopt.analysis.sweep import DENSE, SweepPoint
from vlmopt.evaluation.report.draw import Dot, Line, Scene, Text, text_width
from vlmopt.evaluation.report.labels import Rect
from vlmopt.evaluation.report.palette import look
from vlmopt.evaluation.report.plane import Plane

CONTROLS = ("random", "uniform")
WIDTH, HEIGHT, ROW = 560.0, 400.0, 18.0


def table(points: Sequence[SweepPoint], answers: Sequence[str], off: Sequence[float | None], mark: str) -> str:
    """Write every point as a line of CSV; shares as fractions, times in ms, clicks in pixels."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["method", "keep_ratio", "kept_share", "layer_share", "agreement", "marked_by", "first_token_ms", "answer_ms",
         "runs", "click_off_px", "answer"]
    )  # fmt: skip
    for point, answer, far in zip(points, answers, off, strict=True):
        shares = (point.keep_ratio, point.kept_share, point.layer_share, point.agreement)
        writer.writerow(
            [point.name, *(f"{share:.6g}" for share in shares), mark, f"{point.ttft_ms:.3f}", f"{point.total_ms:.3f}",
             point.repeats, "" if far is None else f"{far:.2f}", answer]
        )  # fmt: skip
    return out.getvalue()


def drawing(points: Sequence[SweepPoint], title: str) -> Scene:
    """Draw agreement with the dense answer over visual tokens kept: a line a method, controls grey and dashed."""
    scene = Scene(WIDTH, HEIGHT, title)
    names = list(dict.fromkeys(point.name for point in points if point.name != DENSE))
    plane = Plane(Rect(50, 34 + ROW * (len(names) + 1) / 2 + ROW, WIDTH - 14, HEIGHT - 46), 0.0, 103.0, 0.0, 105.0)
    frame = plane.frame
    scene.marks += plane.axes(6)
    scene.marks.append(Text(x=4, y=16, text=title, ink="ink", size=13, bold=True))
    scene.marks.append(Text(x=frame.x1, y=HEIGHT - 8, text="visual tokens kept, % of all", anchor="end"))
    scene.marks.append(Text(x=4, y=34, text="agreement with the dense answer, %"))
    x, y, told = 4.0, 34 + ROW, []
    for number, name in enumerate(names, 1):
        ink, shape = look(number)
        control = name in CONTROLS
        ink = "mute" if control else ink
        own = sorted((p for p in points if p.name == name), key=lambda p: p.kept_share)
        path = [(plane.x(100 * p.kept_share), plane.y(100 * p.agreement)) for p in own]
        if len(path) > 1:
            scene.marks.append(Line(points=path, ink=ink, width=1.2 if control else 2.0, dashed=control))
        for (a, b), p in zip(path, own, strict=True):
            tip = f"{name}: {p.kept_share:.0%} kept, agreement {p.agreement:.0%}, {p.ttft_ms:.0f} ms"
            scene.marks.append(Dot(x=a, y=b, ink=ink, shape=shape, hollow=control, tip=tip))
            told.append(tip)
        if x + 22 + text_width(name, 12) > WIDTH:
            x, y = 4.0, y + ROW
        scene.marks.append(Dot(x=x + 6, y=y - 4, ink=ink, shape=shape, hollow=control))
        scene.marks.append(Text(x=x + 16, y=y, text=name))
        x += 34 + text_width(name, 12)
    scene.told = "; ".join(told)
    return scene
