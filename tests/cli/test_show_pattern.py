"""Images of a head's pattern, from a planted head and from a model, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from vlmopt.cli.main import main
from vlmopt.head_patterns import FACTS, HeadPatterns
from vlmopt.kernels.draw_head import draw_head
from vlmopt.kernels.metrics import density, recall, sample_rows
from vlmopt.kernels.patterns import AShape, Boundary2D, GridSparse, MinP
from vlmopt.kernels.sheet import HIDDEN, SKIPPED, WHOLE, origin
from vlmopt.search.planted import FRAME, planted

SIZE = 128
MODEL = {"model_type": "qwen2_5_vl", "hidden_size": 192, "layers": 6, "num_heads": 4, "num_kv_heads": 2, "head_dim": 48}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 168, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def found(tmp_path):
    """A file of head patterns: layers 0 and 1 stay dense, heads of the others have two patterns in turn."""
    patterns = (AShape(sink=16, local=16, tile=16, run=16), MinP(tau=0.5, tile=16, run=16))
    assert set(MODEL) == set(FACTS)
    heads = HeadPatterns(MODEL | {"name_or_path": "mine"}, patterns, (None, None, *[(0, 1, 0, 1)] * 4))
    return heads.save(tmp_path / "patterns.json")


def panels(path, count, size=SIZE):
    image = np.asarray(Image.open(path)).astype(int)
    corners = [origin(n, size) for n in range(count + 1)]
    assert corners[count - 1][0] + size < image.shape[1] < corners[count][0] + size
    return [image[y : y + size, x : x + size] for x, y in corners[:count]]


def test_a_planted_grid_is_few_blocks_once_permuted(tmp_path, capsys):
    out = tmp_path / "deep" / "grid.png"
    assert main(["show-pattern", "--planted", "grid", "--tokens", "2048", "--size", "128", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    before, after = panels(out, 2)
    dark = [(np.abs(part - WHOLE).sum(-1) < 250).mean() for part in (before, after)]
    assert dark[0] > 0.1  # sink and window
    assert 0.005 < dark[1] < 0.1  # the diagonal and the last columns
    assert before[4, 120].tolist() == list(HIDDEN)
    assert after[20, 60].tolist() == list(SKIPPED)
    right = (np.abs(after[:, -2:] - SKIPPED).sum(-1) > 100).mean()
    assert right > 0.9, "the columns come last"


@pytest.mark.parametrize(("kind", "pattern"), [("grid", GridSparse()), ("timestamps", Boundary2D(dense_below=0))])
def test_what_is_planted_is_found(kind, pattern):
    prefill = planted(kind, 3072)
    launches = pattern.build(prefill)
    assert float(recall(prefill, launches, sample_rows(prefill)).mean()) > 0.9
    assert float(density(prefill, launches).cells) < 0.4
    assert (prefill.frame is None) == (kind == "timestamps")
    with pytest.raises(ValueError, match="two frames of 196"):
        planted(kind, 2 * FRAME - 1)


def test_detail_draws_finer_and_counts_the_same_blocks(monkeypatch):
    prefill = planted("grid", 2048)
    launches = GridSparse(local=64).build(prefill)
    captions = []
    monkeypatch.setattr("vlmopt.kernels.draw_head.sheet", lambda panels, *rest: captions.append(panels))
    for detail in (1, 4):
        draw_head(prefill, launches, 0, detail=detail)
    coarse, fine = captions
    assert [p.caption for p in coarse] == [p.caption for p in fine]
    assert [p.kept.shape for p in fine] == [(128, 128)] * 2
    for panel in fine:
        blocks, share = re.match(r"(\d+) blocks, ([\d.]+)% of the causal ones", panel.caption).groups()
        assert int(blocks) / 528 == pytest.approx(float(share) / 100, abs=1e-3)
    assert coarse[0].kept.sum() == fine[0].kept.sum()
    with pytest.raises(ValueError, match="detail must divide 64 and 64"):
        draw_head(prefill, launches, 0, detail=5)


def test_heads_of_a_model(file, found, tmp_path):
    base = ["show-pattern", "--image", file, "--prompt", "What?", "--layer", "3", "--size", "128", "--device", "cpu"]
    named = "min_p:tau=0.5,tile=16,run=16"
    outs = [tmp_path / f"{n}.png" for n in range(3)]
    for out, more in zip(outs, (["--pattern", named], ["--patterns", str(found)], ["--pattern", "dense"]), strict=True):
        assert main([*base, "--head", "1", *more, "--out", str(out)]) == 0
    maps = [panels(out, 1)[0] for out in outs]
    assert np.array_equal(maps[0], maps[1]), "head 1 has this pattern in the file"
    assert not np.array_equal(maps[0], maps[2])
    triangle = np.abs(maps[2] - WHOLE).sum(-1) == 0
    assert bool(triangle[100, :90].all())
    assert not triangle[:90, 100].any()


@pytest.mark.parametrize(("words", "said"), [
    ([], "give one of --image FILE"),
    (["--planted", "grid", "--image", "a.png"], "give one of --image FILE"),
    (["--planted", "grid", "--patterns", "p.json"], "it has no model"),
    (["--planted", "grid", "--tokens", "100"], "tokens must be 392 or more"),
    (["--image", "nowhere.png"], "image not found"),
    (["--prompt", "Hi", "--pattern", "gird"], "did you mean 'grid'"),
    (["--prompt", "Hi", "--pattern", "min_p:tua=0.5"], "did you mean 'tau'"),
    (["--prompt", "Hi", "--pattern", "screens-30"], "is 2 methods; give one pattern"),
    (["--prompt", "Hi", "--pattern", "fastv"], "keep_ratio"),
    (["--prompt", "Hi", "--pattern", '{"method": "uniform", "keep_ratio": 0.5}'], "uniform is a selector"),
    (["--prompt", "Hi", "--pattern", "{method}"], "is not JSON"),
    (["--prompt", "Hi", "--pattern", "grid", "--patterns", "p.json"], "not both"),
    (["--prompt", "Hi", "--layer", "6"], "--layer must be 0 to 5"),
    (["--prompt", "Hi", "--head", "4"], "--head must be 0 to 3"),
    (["--prompt", "Hi", "--head", "-1"], "--head must be 0 or more"),
], ids=str)  # fmt: skip
def test_refusals(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["show-pattern", "--device", "cpu", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_of_patterns_that_do_not_fit_are_refused(found, tmp_path, capsys):
    words = ["show-pattern", "--prompt", "Hi", "--device", "cpu", "--out", str(tmp_path / "p.png")]
    assert main([*words, "--patterns", str(found), "--layer", "1"]) == 2
    assert "layer 1 stays dense" in capsys.readouterr().err
    found.write_text(found.read_text().replace('"hidden_size": 192', '"hidden_size": 96'))
    assert main([*words, "--patterns", str(found), "--layer", "2"]) == 2
    assert "another model" in capsys.readouterr().err


def test_a_prompt_of_text_alone(tmp_path):
    out = tmp_path / "text.png"
    assert main(["show-pattern", "--prompt", "What is red? " * 20, "--device", "cpu", "--out", str(out)]) == 0
    assert Image.open(out).width > 512
