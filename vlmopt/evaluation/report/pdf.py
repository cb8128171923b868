"""A drawing as a PDF of one page: vectors, and letters in a font that lies in the file, as publishers ask."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

from PIL import ImageColor, ImageFont

from .draw import DASH, Box, Dot, Line, Mark, Points, Scene, Text, faint, font, outline
from .palette import LIGHT

POINT = 0.75  # PDF points per unit of a drawing
ROUND = 0.5523  # of a radius: where the handles of a quarter of a circle lie
CODES = range(32, 256)
ASSUMED = {"−": "–", "…": "..."}  # what the encoding lacks, and what stands for it
FLAGS = 32  # the font's letters are those of Latin alphabets


def pdf(scene: Scene, colours: Mapping[str, str] = LIGHT) -> bytes:
    """Write a scene as PDF; letters outside of Windows' Latin alphabet become question marks."""
    wide, tall = scene.width * POINT, scene.height * POINT
    steps = "\n".join(step for mark in scene.marks for step in painted(mark, colours))
    content = f"{POINT} 0 0 {-POINT} 0 {tall:g} cm 1 j\n{steps}".encode("cp1252", "replace")
    letters = font(1000)
    assert isinstance(letters, ImageFont.FreeTypeFont)
    widths = " ".join(f"{letters.getlength(bytes([code]).decode('cp1252', 'replace')):.0f}" for code in CODES)
    up, down = letters.getmetrics()
    return assembled(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {wide:g} {tall:g}]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>"
            "/ExtGState<</E 8 0 R/A 9 0 R>>>>>>".encode(),
            stream(content),
            f"<</Type/Font/Subtype/TrueType/BaseFont/Aileron-Regular/Encoding/WinAnsiEncoding/FirstChar {CODES.start}"
            f"/LastChar {CODES.stop - 1}/Widths[{widths}]/FontDescriptor 6 0 R>>".encode(),
            f"<</Type/FontDescriptor/FontName/Aileron-Regular/Flags {FLAGS}/FontBBox[-200 {-down} 1200 {up}]"
            f"/ItalicAngle 0/Ascent {up}/Descent {-down}/CapHeight {up}/StemV 80/FontFile2 7 0 R>>".encode(),
            stream(letters.font_bytes),
            b"<</Type/ExtGState/ca 1>>",
            b"<</Type/ExtGState/ca 0.07>>",
        ]
    )


def stream(content: bytes) -> bytes:
    packed = zlib.compress(content)
    head = f"<</Filter/FlateDecode/Length {len(packed)}/Length1 {len(content)}>>\nstream\n"
    return head.encode() + packed + b"\nendstream"


def assembled(objects: Sequence[bytes]) -> bytes:
    """Return the file: numbered objects, and a table of where each of them begins."""
    out, starts = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"), []
    for number, content in enumerate(objects, start=1):
        starts.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % start for start in starts)
    end = (len(out), len(objects) + 1)
    out += b"xref\n0 %d\n0000000000 65535 f \n%b" % (end[1], table)
    return bytes(out) + b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (end[1], end[0])


def painted(mark: Mark, colours: Mapping[str, str]) -> Iterator[str]:
    """Yield the operators that paint a mark."""
    ink, paper = colour(colours[mark.ink]), colour(colours["paper"])
    if isinstance(mark, Text):
        yield f"{ink} rg {ink} RG"
        yield written(mark)
    elif isinstance(mark, Line) and mark.fill:
        yield f"/A gs {ink} rg {path(mark.points)} h f /E gs"
    elif isinstance(mark, Line):
        yield f"{ink} RG {mark.width:g} w [{f'{DASH:g}' if mark.dashed else ''}] 0 d {path(mark.points)} S [] 0 d"
    elif isinstance(mark, Box):
        yield f"{ink} rg {mark.x:.2f} {mark.y:.2f} {max(0.0, mark.width - 1):.2f} {mark.height:.2f} re f"
    else:
        for x0, y0, x1, y1 in mark.bars:
            shade = (
                ink
                if y0 != y1
                else " ".join(f"{part / 255:.3f}" for part in faint(colours[mark.ink], colours["paper"]))
            )
            yield f"{shade} RG 1.5 w {path([(x0, y0), (x1, y1)])} S"
        fill, edge, width = (paper, ink, 2) if mark.hollow else (ink, paper, 1)
        yield f"{fill} rg {edge} RG {width} w {shape(mark)} h B"


def written(mark: Text) -> str:
    """Return the operators for a text; PDF's own y runs upwards, and so letters are turned over."""
    words = mark.text
    for sign, other in ASSUMED.items():
        words = words.replace(sign, other)
    back = {"start": 0.0, "middle": 0.5, "end": 1.0}[mark.anchor] * float(font(100).getlength(words)) * mark.size / 100
    x, y = (mark.x, mark.y + back) if mark.turned else (mark.x - back, mark.y)
    turn = "0 -1 -1 0" if mark.turned else "1 0 0 -1"
    safe = words.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
    thick = f"2 Tr {mark.size / 40:.2f} w" if mark.bold else "0 Tr"
    return f"BT /F {mark.size:g} Tf {thick} {turn} {x:.2f} {y:.2f} Tm ({safe}) Tj ET"


def shape(dot: Dot) -> str:
    """Return the path of a marker."""
    if corners := outline(dot):
        return path(corners)
    x, y, r, k = dot.x, dot.y, dot.radius, dot.radius * ROUND
    quarters = (
        (x + r, y + k, x + k, y + r, x, y + r), (x - k, y + r, x - r, y + k, x - r, y),
        (x - r, y - k, x - k, y - r, x, y - r), (x + k, y - r, x + r, y - k, x + r, y),
    )  # fmt: skip
    return " ".join([f"{x + r:.2f} {y:.2f} m", *(" ".join(f"{part:.2f}" for part in q) + " c" for q in quarters)])


def path(points: Points) -> str:
    first, *rest = (f"{x:.2f} {y:.2f}" for x, y in points)
    return " ".join([f"{first} m", *(f"{point} l" for point in rest)])


def colour(ink: str) -> str:
    return " ".join(f"{part / 255:.3f}" for part in ImageColor.getrgb(ink)[:3])
