"""Training: rows are packed as `generate` will see them, and an interrupted run goes on as if it had not been."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vlmopt.checkpoints import load_checkpoint
from vlmopt.synthetic import screen
from vlmopt.synthetic.hallucination import DEGRADATIONS, HabitWorld
from vlmopt.synthetic.words import BACKGROUND, COORDINATES, SECOND_SLOT
from vlmopt.training.data import IGNORE, Packer, Share
from vlmopt.training.language import LanguageStage, Reader
from vlmopt.training.llava import LLAVA, padded
from vlmopt.training.loop import Loop, Schedule
from vlmopt.training.prior import PriorStage
from vlmopt.training.qwen import QWEN, patches
from vlmopt.training.tower import TowerStage
from vlmopt.training.vocabulary import build_tokenizer
from vlmopt.training.worlds import Trainer, main

PIXELS = {"qwen": lambda world: patches([world])[0], "llava": lambda world: padded([world])}
NAMED = {"qwen": QWEN, "llava": LLAVA}


@pytest.fixture(params=NAMED)
def architecture(request):
    return NAMED[request.param]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("name", NAMED)
def test_tokenizer_is_the_one_shipped(tokenizer, name):
    _, processor = load_checkpoint(f"tiny-{name}")
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("text", ["Is there a red circle?", "(63, 119)", "top left", "Click the Save button."])
def test_tokenizer_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(("name", "first"), [("qwen", 0), ("llava", 0), ("llava", 1), ("llava", 4), ("llava", 10)])
def test_packed_questions_are_what_a_single_prompt_is(name, first):
    """Every block of a packed row gives the same logits as its question alone through the processor."""
    architecture = NAMED[name]
    model, processor = load_checkpoint(f"tiny-{name}")
    packer = Packer(processor.tokenizer, architecture)
    world = packer.draw(first, 1, objects=4, questions=3)[0]
    batch = packer.pack([world], keep=10_000, seed=0)
    with torch.inference_mode():
        tokens, _ = architecture.see(model, [world])
        embeds = model.get_input_embeddings()(batch.ids)
        embeds[:, batch.visual] = tokens
        mask = architecture.mask(batch.mask.to(embeds.dtype))
        packed = model.model.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions)
        logits = model.lm_head(packed.last_hidden_state)[0]
        for _row, places, question in batch.spans:
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(text=[prompt], images=[world.image], return_tensors="pt")
            assert torch.equal(inputs["pixel_values"], PIXELS[name](world))
            alone = model(**inputs).logits[0, -1]
            torch.testing.assert_close(logits[places.start], alone, atol=2e-4, rtol=1e-4)


def test_answers_are_the_labels(tokenizer, architecture):
    packer = Packer(tokenizer, architecture)
    worlds = packer.draw(0, 4, objects=5, questions=6)
    batch = packer.pack(worlds, keep=48, seed=0)
    assert batch.kept.shape == (4, 48)
    assert sum(len(world.questions) for world in worlds) == len(batch.spans)
    for row, places, question in batch.spans:
        labels = batch.labels[row, places].tolist()
        assert IGNORE not in labels
        assert tokenizer.decode(labels[:-1]) == question.answer


@pytest.mark.parametrize("size", [(224, 140), (112, 224), (224, 224)])
def test_cells_of_a_padded_image_stand_where_its_pixels_do(tokenizer, size):
    """Places count from the image's own corner, padding says nothing, and a box asked about covers its cells."""
    packer = Packer(tokenizer, LLAVA)
    world = screen(3, size, widgets=3)
    batch = packer.pack([world], keep=10_000, seed=0)
    x, y = (centres[0] for centres in batch.centres())
    inside = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
    assert inside.sum() == size[0] * size[1] // 14**2
    assert (batch.slots[:, 0, ~inside] == -2).all()
    places = torch.tensor(COORDINATES)[batch.slots[2:, 0, inside]]
    assert torch.equal(places, torch.stack([x, y])[:, inside])
    square = padded([world])[0].sum(0).unfold(0, 14, 14).unfold(1, 14, 14).flatten(0, 1).flatten(1)
    blank = square.amax(1) - square.amin(1) < 1e-4
    assert blank[~inside].all()
    object_cells = (batch.slots[1, 0] >= 0) & (batch.slots[1, 0] != SECOND_SLOT.index(BACKGROUND))
    _, cells = batch.targets()
    assert cells.any(-1).all()
    assert (cells <= object_cells).all()


def test_padding_is_not_kept_before_background(tokenizer):
    packer = Packer(tokenizer, LLAVA)
    worlds = [screen(seed, (224, 112), widgets=2) for seed in range(16)]
    batch = packer.pack(worlds, keep=100, seed=0)
    inside = LLAVA.inside(8, 16)
    background = (batch.slots[1] == SECOND_SLOT.index(BACKGROUND)) & inside
    kept = torch.zeros(len(worlds), 256, dtype=torch.bool).scatter(1, batch.kept, True)
    objects = (batch.slots[0] >= 0) & inside
    assert (kept | ~objects).all()
    padding_share, background_share = kept[:, ~inside].float().mean(), kept[background].float().mean()
    assert abs(padding_share - background_share) < 0.08


def test_padding_is_noise_to_the_language_stage(tokenizer):
    model = LLAVA.build(tokenizer, 0)
    packer = Packer(tokenizer, LLAVA)
    stage = LanguageStage(Reader(model, packer), packer, Share(1), 10)
    batch = packer.pack([screen(3, (224, 112), widgets=3)], keep=10_000, seed=0)
    tokens, inside = stage.symbolic(batch, seed=0)[0], LLAVA.inside(8, 16)
    assert (tokens[~inside].norm(dim=-1) < 1).all()
    assert (tokens[inside].norm(dim=-1) > 1).all()


def test_an_interrupted_run_goes_on_unchanged(tokenizer, tmp_path, architecture):
    def train(path, stop_at=None):
        model = architecture.build(tokenizer, 0)
        stage = TowerStage(model, Packer(tokenizer, architecture), Share(2))
        loop = Loop({"visual": architecture.visual(model)}, path, Schedule(3, 1e-3), average=0.9)

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


def test_prior_stage_draws_habits_and_leaves_the_tower_alone(tokenizer, architecture):
    """A third of the images are scenes of habit, degradations alike; gradients reach the language model only."""
    model = architecture.build(tokenizer, 0)
    packer = Packer(tokenizer, replace(architecture, probed_layer=None))
    stage = PriorStage(model, Reader(model, packer), packer, Share(12))
    worlds = stage.draw(12)
    habits = [world.degradation for world in worlds if isinstance(world, HabitWorld)]
    assert sorted(habits) == sorted(DEGRADATIONS)
    assert {world.size for world in worlds} == {worlds[0].size}
    assert [world.image.tobytes() for world in stage.draw(12)] == [world.image.tobytes() for world in worlds]
    loss, counts = PriorStage(model, stage.reader, packer, Share(3))(0)
    loss.backward()
    assert {"h_presence", "h_describe"} <= set(counts)
    assert all(parameter.grad is None for parameter in architecture.visual(model).parameters())
    assert model.model.language_model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_export_takes_the_language_model_of_the_last_stage(tmp_path):
    trainer = Trainer(tmp_path, QWEN, dict(QWEN.steps))
    modules = {"visual": trainer.visual, "reader": trainer.reader}
    for stage, value in (("joint", 0.25), ("prior", 0.5)):
        state = {
            f"{module}.{name}": torch.full_like(parameter, value)
            for module in (modules if stage == "joint" else ["reader"])
            for name, parameter in modules[module].named_parameters()
            if parameter.requires_grad and "probe" not in name
        }
        torch.save({"parameters": state, "averages": {}}, tmp_path / f"{stage}.pt")
    trainer.export()
    model, _ = load_checkpoint(tmp_path / "checkpoint")
    assert (model.model.language_model.norm.weight == 0.5).all()
    assert (next(model.model.visual.parameters()) == 0.25).all()


def test_unknown_stage_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--stage", "polish"])
    assert "polish" in capsys.readouterr().err
