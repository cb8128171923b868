"""Read images from disk as RGB; say in one sentence why a file is not an image."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .paths import check_file

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs


@dataclass(frozen=True)
class LoadedImage:
    """An RGB image, upright, without alpha, and what had to be done to get it there."""

    image: Image.Image
    source: str
    notes: tuple[str, ...] = field(default=())


def load_image(path: str | os.PathLike[str]) -> LoadedImage:
    """Read an image as 8-bit RGB: EXIF rotation applied, transparency laid on white, first frame of an animation.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: a bad path.
        ValueError: an empty, truncated or unreadable file, whatever its decoder raised; not a regular file; more than
            `MAX_PIXELS` pixels.
    """
    file = check_file(path, "image")
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(
                        f"{opened.width}x{opened.height} pixels, at most {MAX_PIXELS} are read; scale it down first"
                    )
                frames = getattr(opened, "n_frames", 1)
                if frames > 1:
                    opened.seek(0)
                    notes.append(f"{frames} frames, the first one is used")
                opened.load()
                image = _to_rgb(ImageOps.exif_transpose(opened), notes)
    except UnidentifiedImageError:
        raise ValueError(f"not an image: {file} (supported: what Pillow reads, such as PNG, JPEG, WebP, GIF)") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"image is too large: {file} ({error})") from None
    except Exception as error:  # a decoder raises whatever the bytes make it: TypeError, struct.error, KeyError, ...
        raise ValueError(f"image is corrupt or truncated: {file} ({type(error).__name__}: {error})") from error
    return LoadedImage(image, str(file), tuple(notes))


def readable(paths: Iterable[Path], most: int) -> tuple[list[Path], dict[Path, str]]:
    """Return the first `most` files that can be read as images, and why the files before them cannot."""
    good: list[Path] = []
    bad: dict[Path, str] = {}
    for path in paths:
        if len(good) == most:
            break
        try:
            load_image(path)
        except (OSError, ValueError) as error:
            bad[path] = str(error)
        else:
            good.append(path)
    return good, bad


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bit(image, notes)
    if image.has_transparency_data:
        notes.append("transparency laid on white")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "CMYK":
        notes.append("converted from CMYK")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """Scale integers of 16 bits or more and floats to 0-255; Pillow's own conversion clips them to white."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    values = values - min(values.min(initial=0.0), 0.0)
    top = float(values.max(initial=0.0))
    scales = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(image.mode, (65535.0,))
    full = next((scale for scale in scales if top <= scale), top)
    notes.append(f"{image.mode} samples scaled to 8 bits")
    return Image.fromarray((values / full * 255.0).round().astype(np.uint8))


def optional_module(name: str) -> tuple[ModuleType | None, str]:
    """Import a module if it can be: return (module, "") or (None, reason).

    A package that is there but broken counts as absent: torchvision beside a torch it was not built for raises
    RuntimeError on import, not ImportError.
    """
    try:
        return importlib.import_module(name), ""
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else name}"
