"""Run the vision tower on some of its patches, for methods that choose before it.

Only the chosen pixels are embedded. For the tower's own code the others become rows of NaN, so that it may add its
positions and put patches into whatever order it likes; the first block tells by them which rows to go on with. From
there on everything a block is handed (rotary tables, segment bounds) is gathered, never derived anew: positions are
those of the whole image, and a window or frame holds what is left of it. Behind a merger, rows go back to the places
of their cells, so that placeholders agree; a cell that was left out shows the features of the cell that stands for it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ....families import family_of
from ....policy import Policy
from ... import compat
from ...call import Call, Session
from ...capture import described
from ...captures.pixels import Found
from ...component import Account, Component
from ...smaller_images import ARGUMENTS
from ...structure import ModelStructure, part
from .plan import Running, TowerPlan

PARTS = ("patch_embed", "blocks", "merger")


class Patches(list[tuple[int, int]]):
    """State of a page: (given, encoded) per run of the tower."""


class TowerPruning(Component):
    """Encode the cells that a method chooses from their pixels; hooks act while a plan runs."""

    on_single_rows = False

    def __init__(self, session: Session, method: Any) -> None:
        super().__init__(session)
        self.method = method

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        for method in (m for m in policy.active if m.before_tower):
            family = family_of(model.config)
            if not family.patch_grid:
                raise ValueError(
                    f"{method.name}: the vision tower of {model.config.model_type} takes whole images, so it cannot "
                    f"leave out cells; works with: {described(lambda f: f.patch_grid)}. Use a selector "
                    "before the LLM, e.g. div_prune"
                )
            if not family.image_std:
                raise ValueError(
                    f"{method.name}: the image_std of {family.name} is not known; state it in vlmopt/families"
                )
            if reason := why_not(part(structure.outer, family.vision_tower)):
                raise ValueError(f"{method.name}: {reason}, so it cannot run on some of its patches; use div_prune")

    @classmethod
    def of(cls, session: Session) -> TowerPruning | None:
        method = next((method for method in session.policy.active if method.before_tower), None)
        return None if method is None else cls(session, method)

    def install(self) -> None:
        """Put hooks at the tower's patch embedding, blocks and mergers."""
        session = self.session
        tower: Any = part(session.structure.outer, session.family.vision_tower)
        session.hook(tower.patch_embed.register_forward_pre_hook(ChosenPixels(session)))
        session.hook(tower.patch_embed.register_forward_hook(MarkedRows(session)))
        for block in tower.blocks:
            session.hook(block.register_forward_pre_hook(BlockHook(session, block), with_kwargs=True))
        for merger in (tower.merger, *getattr(tower, "deepstack_merger_list", ())):
            session.hook(merger.register_forward_hook(SpreadRows(session)))

    def open_encoding(self, call: Call) -> None:
        """Forget earlier encodings: only the last one counts."""
        call.page.slot(Patches).clear()

    def plan_encoding(self, modality: str, bound: dict[str, Any]) -> TowerPlan | None:
        """Return which cells of this call's images are encoded; None where that is all of them.

        What the method found lies on the call's features either way, for its cut before the LLM.
        """
        call = self.session.running_call()
        pixels, grid = (bound.get(name) for name in ARGUMENTS[modality])
        if call is None or pixels is None or grid is None:
            return None
        with call.ledger.timed(call.page.in_tower):
            return self.plan(call, modality, pixels, grid)

    def plan(self, call: Call, modality: str, pixels: Tensor, grid: Tensor) -> TowerPlan | None:
        """Let the method choose among the cells of every image."""
        vision = self.session.model.config.vision_config
        merge = vision.spatial_merge_size
        grids = [(t, h // merge, w // merge) for t, h, w in grid.tolist()]
        lengths = [t * h * w for t, h, w in grids]
        copies = 1 if modality == "image" else vision.temporal_patch_size  # an image is repeated to fill its patches
        cells = pixels.view(sum(lengths), merge**2, -1, vision.temporal_patch_size, vision.patch_size**2)
        of_images = cells[..., :copies, :].flatten(-2).split(lengths)
        std = torch.tensor(self.session.family.image_std, device=pixels.device, dtype=torch.float32)
        found = [self.method.encode(x.unflatten(0, g), std) for x, g in zip(of_images, grids, strict=True)]
        novelty = torch.cat([one.novelty for one in found])
        call.features.slot(Found).setdefault(modality, []).append(novelty)
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).tolist()
        anchor = torch.cat([one.anchor + first for one, first in zip(found, starts, strict=True)])
        keep = novelty >= 0
        whole = bool(keep.all())
        call.page.slot(Patches).append((len(pixels), len(pixels) if whole else int(keep.sum()) * merge**2))
        tower = f"{type(self.session.model).__name__}'s vision tower"
        return None if whole else TowerPlan(tower, call.slot(Running), keep, anchor, lengths, merge**2)

    def report(self, call: Call) -> Account:
        """Report the patches that the tower was given, and those that it encoded."""
        runs = call.page.slot(Patches)
        if not runs:
            return Account()
        given, encoded = (sum(run[i] for run in runs) for i in (0, 1))
        line = f"tower    {given} patches given, {encoded} encoded"
        return Account({"tower": {"given": given, "encoded": encoded}}, [line])


def why_not(tower: nn.Module) -> str | None:
    """Return why this tower cannot run on some of its patches; None if it can."""
    absent = [name for name in PARTS if not isinstance(getattr(tower, name, None), nn.Module)]
    return f"{type(tower).__name__} has no {', '.join(absent)}" if absent else None


class TowerHook:
    """Base of hooks in the tower, which act while a plan runs."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def plan(self) -> TowerPlan | None:
        call = self.session.running_call()
        return None if call is None else call.slot(Running).plan


class ChosenPixels(TowerHook):
    """Forward pre-hook of the patch embedding."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        plan = self.plan
        return None if plan is None else (args[0][plan.patches.to(args[0].device)], *args[1:])


class MarkedRows(TowerHook):
    """Forward hook of the patch embedding: full length again, NaN where nothing was embedded."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        plan = self.plan
        if plan is None:
            return None
        full = output.new_full((plan.group * len(plan.keep), *output.shape[1:]), torch.nan)
        return full.index_copy(0, plan.patches.to(output.device), output)


class BlockHook(TowerHook):
    """Forward pre-hook of one block."""

    def __init__(self, session: Session, block: nn.Module) -> None:
        super().__init__(session)
        self.names = list(inspect.signature(type(block).forward).parameters)[1:]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan = self.plan
        if plan is None:
            return None
        given = dict(zip(self.names, args, strict=False)) | kwargs
        compat.require(compat.BLOCK, given, type(module).__name__)
        hidden = given.pop(self.names[0])
        hidden = plan.find(hidden) if plan.found is None else hidden
        return (hidden,), {name: plan.fitted(name, value) for name, value in given.items()}


class SpreadRows(TowerHook):
    """Forward hook of a merger."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        plan = self.plan
        return None if plan is None else plan.spread(output)
