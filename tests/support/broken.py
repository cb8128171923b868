"""Files that decoders stumble over in ways of their own."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import Image

WIDTH, UNKNOWN = 256, 65000  # tags of TIFF


def broken_tiff(path: Path) -> Path:
    """Two frames, of which the second lacks a width: Pillow raises TypeError while it counts them."""
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    first.save(path, "TIFF", save_all=True, append_images=[second])
    raw = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", raw, 4)
    (entries,) = struct.unpack_from("<H", raw, at)
    (at,) = struct.unpack_from("<I", raw, at + 2 + 12 * entries)
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", raw, at)[0], 12):
        if struct.unpack_from("<H", raw, entry)[0] == WIDTH:
            struct.pack_into("<H", raw, entry, UNKNOWN)
    path.write_bytes(raw)
    return path
