"""A video from a camera that stands still: keep what changes from frame to frame.

`evs` keeps the first step whole, and of the others the cells that differ most from the step before. The clip is made
here: a red disc crosses a still scene. You see the tokens per step, and in examples-out/video.png that they follow it.
"""

from pathlib import Path

from PIL import Image

import vlmopt
from vlmopt.frames import load_video
from vlmopt.overlay import overlay
from vlmopt.prompt import video_prompt
from vlmopt.pruning import EVS
from vlmopt.synthetic.clips import write_clip

OUT = Path("examples-out")
OUT.mkdir(exist_ok=True)

model, processor = vlmopt.load_checkpoint("tiny-qwen")
vision = processor.image_processor
file = write_clip(OUT / "clip.mp4")
video = load_video(file, nframes=8, patch_size=vision.patch_size, merge_size=vision.merge_size)
inputs = video_prompt(processor, model, "Describe the picture.", video)

with vlmopt.optimized(model, EVS(keep_ratio=0.35)):
    model.generate(**inputs, max_new_tokens=8, do_sample=False)
    (clip,) = vlmopt.report(model).maps(0)

steps = clip.grid[0]
for step in range(steps):
    here = clip.coords[:, 0] == step
    print(f"step {step}: {int(clip.kept[here].sum())} of {int(here.sum())} tokens kept")
shown = video.frames[:: len(video.frames) // steps].byte().permute(0, 2, 3, 1).numpy()
overlay([Image.fromarray(frame) for frame in shown], [clip], title="evs").save(OUT / "video.png")
