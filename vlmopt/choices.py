"""Values that settings and options take, apart from what reads them: the command line knows them without torch."""

from __future__ import annotations

DTYPES = ("auto", "float32", "bfloat16", "float16")
# Of coordinates in answers. pixels: of the image as given; resized: of the image as the processor resizes it; unit:
# fractions, 0 to 1; hundred: percent; thousand: thousandths, 0 to 1000; thousand-yx: with y before
# x; loc: PaliGemma's, 0 to 1024.
UNITS = ("pixels", "resized", "unit", "hundred", "thousand", "thousand-yx", "loc")
POLICY_LINE = (
    "name:setting=value,setting=value, several joined by '+', e.g. 'pixel_redundancy+div_prune:keep_ratio=0.3'"
)
SECTIONS = ("presets", "methods", "families", "checkpoints")  # of `vlmopt list`
PARTS = ("debias", "sinks", "heads")  # of a calibration
IAT = "iat"  # a part of it that has to write captions, so only on demand
MATCHES = ("time", "flops")  # what a pattern must not exceed
PLANTED = ("grid", "timestamps")  # made-up heads
WORLDS = ("worlds", "worlds:scene", "worlds:screen", "worlds:pope", "worlds:captions")  # data that is generated
SPLITS = ("train", "held-out")  # of the rendered pages
SIZE = "1280x800"  # of one, unless another is asked for
MEASURED = "devices.json"  # where `vlmopt estimate --calibrate` writes
# Of a second look: where to look, what the second image is, which images the second answer is about, and whether
# attention sinks count.
LOOKS = ("contrast", "relative")
REFINE = ("crop", "mask")
ANSWERS = ("refined", "both")
SINKS = ("leave_out", "keep")
# What `vlmopt tune` makes small. ttft: time to the first token; total: time of the whole answer; throughput: time per
# new token of a full batch; kv_bytes: keys and values of the prompts; peak_memory; tokens: visual tokens per layer.
OBJECTIVES = ("ttft", "total", "throughput", "kv_bytes", "peak_memory", "tokens")
