"""Images that lie inside of a data file: named by their content, written only for samples that were chosen."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable

JPEG = b"\xff\xd8"


class Packed(str):
    """The name of an image relative to the run directory, with what reads its bytes."""

    content: Callable[[], bytes]

    @classmethod
    def of(cls, content: bytes) -> Packed:
        """Name bytes of an image file."""
        return cls._named(hashlib.sha256(content), content[:2], lambda: content)

    @classmethod
    def base64(cls, text: str, where: str) -> Packed:
        """Name an image written in base64; it is decoded when it is needed.

        Raises:
            ValueError: no base64.
        """
        text = text.partition(",")[2] if text.startswith("data:") else text
        try:
            head = base64.b64decode(text[:8], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f"{where}: {text[:24]!r}... is neither an image in base64 nor the index of a row"
            ) from error
        return cls._named(hashlib.sha256(text.encode()), head, lambda: base64.b64decode(text))

    @classmethod
    def _named(cls, digest: hashlib._Hash, head: bytes, content: Callable[[], bytes]) -> Packed:
        ending = "jpg" if head.startswith(JPEG) else "png"
        made = cls(f"pictures/{digest.hexdigest()[:16]}.{ending}")
        made.content = content
        return made
