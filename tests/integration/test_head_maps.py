"""Maps of what heads would read, and of numbers per cell: counts are right, panels are whole, wrong layers refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from tests.integration.test_overlay import visual_map
from tests.support.families import FAMILIES, Image
from vlmopt.analysis.cell_map import VIRIDIS, cell_map
from vlmopt.analysis.head_maps import head_maps
from vlmopt.api import session_of
from vlmopt.checks import model_facts
from vlmopt.head_patterns import HeadPatterns
from vlmopt.kernels.patterns import AShape, DensePattern, PBSAttn
from vlmopt.overlay import GAP
from vlmopt.prefill import SparsePrefill
from vlmopt.runtime.structure import structure_of


@pytest.fixture(scope="module")
def asked():
    family = FAMILIES["qwen2_5_vl"]
    return copy.deepcopy(family.build()), family.inputs([[70, Image(2), 7]])()


def test_dense_reads_everything(asked):
    model, inputs = asked
    told: list[float] = []
    maps = head_maps(model, inputs, DensePattern(), 3, block=16, size=96, progress=lambda done, text: told.append(done))
    heads = model_facts(model, structure_of(model))["num_heads"]
    assert [m.head for m in maps] == list(range(heads))
    for m in maps:
        assert (m.layer, m.pattern, m.blocks, m.cells) == (3, "dense", 1, 1)
        assert m.recall == pytest.approx(1)
        assert len(m.panels) == 1
    assert told == pytest.approx([(i + 1) / heads for i in range(heads)])
    assert session_of(model) is None


def test_a_window_reads_less_and_an_order_of_its_own_is_a_second_panel(asked):
    model, inputs = asked
    width = inputs["input_ids"].shape[1]
    (one, *_) = head_maps(model, inputs, AShape(sink=16, local=16), 3, block=16, size=96)
    blocks = -(-width // 16)
    assert one.blocks < 1
    assert one.blocks * blocks * (blocks + 1) / 2 == pytest.approx(round(one.blocks * blocks * (blocks + 1) / 2))
    assert 0 < one.recall < 1
    (both, *_) = head_maps(model, inputs, PBSAttn(), 3, block=16, size=96)
    assert len(both.panels) == 2
    assert both.panels[0].size == both.panels[1].size == one.panels[0].size


def test_found_patterns_count_where_prefill_would_stay_dense(asked):
    model, inputs = asked
    facts = model_facts(model, structure_of(model))
    layers = tuple(None if i == 1 else tuple(h % 2 for h in range(facts["num_heads"])) for i in range(facts["layers"]))
    prefill = SparsePrefill(heads=HeadPatterns(facts, (DensePattern(), AShape(sink=16, local=16)), layers))
    maps = head_maps(model, inputs, prefill, 0, block=16, size=96)
    assert [m.pattern for m in maps] == ["dense", "a_shape"] * (facts["num_heads"] // 2)
    with pytest.raises(ValueError, match="layer 1 stays dense"):
        head_maps(model, inputs, prefill, 1, block=16)


def test_a_layer_that_is_not_there_is_refused(asked):
    model, inputs = asked
    with pytest.raises(ValueError, match="layer"):
        head_maps(model, inputs, DensePattern(), 99)


def test_cells_are_coloured_by_value_and_others_dimmed():
    part = visual_map([0], (1, 4, 4))
    values = torch.full((16,), float("nan"))
    values[0], values[5] = 0.0, 8.0
    sheet = np.asarray(cell_map([PILImage.new("RGB", (64, 64), "white")], [part], [values], label="layers")).astype(int)
    side = 672 // 4

    def middle(y: int, x: int) -> np.ndarray:
        return sheet[GAP + y * side + side // 2, GAP + x * side + side // 2]

    for place, colour in (((0, 0), VIRIDIS[0]), ((1, 1), VIRIDIS[-1])):
        assert middle(*place) == pytest.approx(0.3 * 255 + 0.7 * colour, abs=1)
    grey = middle(3, 3)
    assert grey[0] == grey[1] == grey[2] < 200


def test_maps_that_cannot_be_drawn_are_refused():
    part, white = visual_map([0], (1, 4, 4)), [PILImage.new("RGB", (64, 64), "white")]
    with pytest.raises(ValueError, match="16"):
        cell_map(white, [part], [torch.zeros(3)], label="x")
    with pytest.raises(ValueError, match="grid"):
        cell_map(white, [visual_map([0], None)], [torch.zeros(16)], label="x")
    nothing = cell_map(white, [part], [torch.full((16,), float("nan"))], label="x")
    assert nothing.width == 672 + 2 * GAP
