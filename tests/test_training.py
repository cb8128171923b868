"""Training: rows are packed as `generate` will see them, and an interrupted run goes on as if it had not been."""

from __future__ import annotations

import pytest
import torch

from vlmopt.checkpoints import load_checkpoint
from vlmopt.training.architecture import build_model
from vlmopt.training.data import IGNORE, Packer, Share, patches
from vlmopt.training.loop import Loop, Schedule
from vlmopt.training.tower import TowerStage
from vlmopt.training.vocabulary import build_tokenizer
from vlmopt.training.worlds import main


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_tokenizer_is_the_one_shipped(tokenizer):
    _, processor = load_checkpoint("tiny-qwen")
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("text", ["Is there a red circle?", "(63, 119)", "top left", "Click the Save button."])
def test_tokenizer_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_packed_questions_are_what_a_single_prompt_is():
    """Every block of a packed row gives the same logits as its question alone through the processor."""
    model, processor = load_checkpoint("tiny-qwen")
    packer = Packer(processor.tokenizer)
    world = packer.draw(0, 1, objects=4, questions=3)[0]
    batch = packer.pack([world], keep=10_000, seed=0)
    pixels, grid = patches([world])
    with torch.inference_mode():
        tokens = model.model.visual(pixels, grid_thw=grid).pooler_output[None]
        embeds = model.get_input_embeddings()(batch.ids)
        embeds[:, batch.visual] = tokens
        mask = {"full_attention": batch.mask.to(embeds.dtype)}
        packed = model.model.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions)
        logits = model.lm_head(packed.last_hidden_state)[0]
        for _row, places, question in batch.spans:
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(text=[prompt], images=[world.image], return_tensors="pt")
            assert torch.equal(inputs["pixel_values"], pixels)
            alone = model(**inputs).logits[0, -1]
            torch.testing.assert_close(logits[places.start], alone, atol=2e-4, rtol=1e-4)


def test_answers_are_the_labels(tokenizer):
    packer = Packer(tokenizer)
    worlds = packer.draw(0, 4, objects=5, questions=6)
    batch = packer.pack(worlds, keep=48, seed=0)
    assert batch.kept.shape == (4, 48)
    assert sum(len(world.questions) for world in worlds) == len(batch.spans)
    for row, places, question in batch.spans:
        labels = batch.labels[row, places].tolist()
        assert IGNORE not in labels
        assert tokenizer.decode(labels[:-1]) == question.answer


def test_an_interrupted_run_goes_on_unchanged(tokenizer, tmp_path):
    def train(path, stop_at=None):
        model = build_model(tokenizer, 0)
        stage = TowerStage(model, Packer(tokenizer), Share(2))
        loop = Loop({"visual": model.model.visual}, path, Schedule(3, 1e-3), average=0.9)

        def work(step):
            if step == stop_at:
                raise InterruptedError
            return stage(step)

        try:
            loop.run(work)
        except InterruptedError:
            loop.save()
        return loop

    whole = train(tmp_path / "whole.pt")
    train(tmp_path / "parts.pt", stop_at=2)
    parts = train(tmp_path / "parts.pt")
    assert parts.step == whole.step == 3
    for name, parameter in whole.parameters.items():
        torch.testing.assert_close(parts.parameters[name], parameter, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(parts.averages[name], whole.averages[name], atol=1e-6, rtol=1e-4)


def test_unknown_stage_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--stage", "polish"])
    assert "polish" in capsys.readouterr().err
