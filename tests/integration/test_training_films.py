"""Training on films: rows are packed as `generate` will see them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vlmopt.checkpoints import load_checkpoint
from vlmopt.frames import Video
from vlmopt.prompt import video_prompt
from vlmopt.synthetic.films import film
from vlmopt.training.data import MARKS, Packer, Share
from vlmopt.training.films import PAIR, PER_SECOND, SIZE, FilmStage, patches, positions
from vlmopt.training.language import Reader
from vlmopt.training.qwen import QWEN


@pytest.fixture(scope="module")
def loaded():
    return load_checkpoint("tiny-qwen")


@pytest.mark.parametrize(("frames", "shown"), [(8, 8), (16, 16), (8, 6), (8, 2)])
def test_packed_questions_are_what_a_single_prompt_is(loaded, frames, shown):
    model, processor = loaded
    packer = Packer(processor.tokenizer, QWEN)
    seen = film(5, SIZE, frames=frames)
    chosen = np.linspace(0, frames - 1, shown).round().astype(int).tolist()
    pixels, grid = patches([seen], chosen)
    count = int(grid[0].prod())
    places, after = positions(torch.arange(count)[None], grid[0].tolist(), frames / shown)
    rows = packer.rows([seen.questions], [MARKS["film"]], places, after)
    stacked = torch.stack([torch.from_numpy(np.array(seen.frames[i])).permute(2, 0, 1).float() for i in chosen])
    video = Video(stacked, PER_SECOND, PER_SECOND * shown / frames, tuple(chosen), "opencv")
    with torch.inference_mode():
        tokens = model.model.visual(pixels, grid_thw=grid).pooler_output
        embeds = model.get_input_embeddings()(rows.ids)
        embeds[:, rows.visual] = tokens
        mask = QWEN.mask(rows.mask.to(embeds.dtype))
        packed = model.model.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=rows.positions)
        logits = model.lm_head(packed.last_hidden_state)[0]
        for _row, asked, question in rows.spans:
            inputs = video_prompt(processor, model, question.text, video)
            torch.testing.assert_close(inputs["pixel_values_videos"], pixels)
            alone = model(**inputs).logits[0, -1]
            torch.testing.assert_close(logits[asked.start], alone, atol=2e-4, rtol=1e-4)


def test_every_kind_of_question_has_its_loss(loaded):
    model, processor = loaded
    packer = Packer(processor.tokenizer, replace(QWEN, probed_layer=None, pointing=None))
    loss, counts = FilmStage(model, Reader(model, packer), packer, Share(4))(0)
    assert torch.isfinite(loss)
    assert {"f_moved", "f_towards", "f_first", "f_when", "f_count", "f_still"} == set(counts)
    assert processor.image_processor.temporal_patch_size == PAIR
