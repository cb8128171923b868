"""Models that cannot be optimized: why, and what to do instead, each as the end of a sentence."""

from __future__ import annotations

CROSS = (
    "reads images through cross-attention: its prompt holds one token an image, so there are no visual tokens to drop. "
    "What images cost there follows from their size: give its processor {}"
)
ENCODER = (
    "is an encoder-decoder: images are read by its encoder, while visual tokens are dropped from the sequence that a "
    "decoder reads. Give its processor smaller images instead"
)
INSIDE = (
    "puts images into the prompt inside its decoder, which takes them and their places as arguments of its own "
    "(image_embeds, image_embeds_position_mask). Give its processor {}"
)

REFUSED: dict[str | None, str] = {
    "mllama": CROSS.format("fewer tiles (max_image_tiles) instead"),
    "idefics": CROSS.format("a smaller image_size instead"),
    "florence2": ENCODER,
    "t5gemma2": ENCODER,
    "pix2struct": ENCODER.replace("smaller images", "fewer patches (max_patches)"),
    "kosmos-2": INSIDE.format("smaller images instead; an image is 64 tokens whatever its size"),
    "kosmos-2.5": INSIDE.format("fewer patches (max_patches) instead"),
}
