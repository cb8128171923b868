"""`vlmopt train-focusui`: train FocusUI's scorer, marker and language model on screens."""

from __future__ import annotations

import argparse
from pathlib import Path


def execute(options: argparse.Namespace) -> None:
    """Train; several processes: `accelerate launch --num_processes N -m vlmopt train-focusui ...`."""
    from ..focusui.run import train
    from ..focusui.settings import Settings

    settings = Settings(
        model=options.model,
        data=tuple(options.data),
        out=Path(options.out),
        steps_scorer=options.steps_scorer,
        steps_model=options.steps_model,
        batch_size=options.batch_size,
        seed=options.seed,
        heads=options.heads,
        pooling=options.pooling,
        rate_scorer=options.lr_scorer,
        rate_model=options.lr_model,
        tower=options.train_tower,
        boxes=options.boxes,
        images=options.images,
        points=options.points,
        device=options.device,
        dtype=options.dtype,
        save_every=options.save_every,
    )
    train(settings)
    print(f"wrote {options.out}")
