"""Every method has a section, every public name stands on a page, and every link leads somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.support.documents import DOCS, DOCUMENTS, PAGES, ROOT, name_of, text_of
from tools import correction_pictures, decoding_pictures, method_pictures, page_diagram
from vlmopt import catalogue, load_checkpoint
from vlmopt.evaluation.data import Source
from vlmopt.evaluation.loading import load_data
from vlmopt.kv import KeyDiff
from vlmopt.methods import describe, find
from vlmopt.pruning import UIGraph

ROWS = {row["name"]: row for row in describe() if row["name"] in {entry.name for entry in catalogue.built_in()}}
PUBLIC = (
    "vlmopt",
    "vlmopt.pruning",
    "vlmopt.attention_fix",
    "vlmopt.kernels.patterns",
    "vlmopt.kv",
    "vlmopt.decoding",
    "vlmopt.policy",
    "vlmopt.calibration",
)
LARGEST = 40 * 1024  # bytes of a method's image
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hook", ROOT / "tools" / "docs_hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections() -> dict[str, tuple[Path, str]]:
    """Page and text of every section whose heading is one name in code."""
    found = {}
    for page in PAGES:
        for part in re.split(r"^## ", text_of(page), flags=re.MULTILINE)[1:]:
            named = re.match(r"`(\w+)`\n", part)
            if named:
                assert named[1] not in found, f"{named[1]} has two sections"
                found[named[1]] = page, part
    return found


@pytest.mark.parametrize("name", ROWS)
def test_every_method_has_a_section(name: str) -> None:
    """Its settings, when it fails, the paper of its docstring, and a small image of what it does."""
    page, text = sections()[name]
    assert f"<!-- settings: {name} -->" in text
    assert "**When it fails.**" in text
    paper = text.partition("**Paper.**")[2]
    assert paper
    assert (ROWS[name]["paper"] or "") in paper
    kind = ROWS[name]["kind"]
    image = re.search(rf"!\[.+\]\((\S*pictures/{kind}s/{name}\.png)\)", text)
    assert image, "no image"
    assert 0 < (page.parent / image[1]).stat().st_size <= LARGEST


def test_every_section_is_of_a_method() -> None:
    assert set(sections()) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_every_setting_is_listed_once(name: str, hook: ModuleType) -> None:
    """In the table of the method or of its kind; a setting that has one value only in neither."""
    row = ROWS[name]
    own = re.findall(r"^\| `(\w+)` \|", hook.settings(name), re.MULTILINE)
    assert len(own) == len(set(own))
    shared = hook.shared(row["kind"])
    for s in row["settings"]:
        if s["name"] not in own:
            assert hook.fixed(s) or s == shared[s["name"]]
        assert s.get("help"), f"{name}: {s['name']} has no help"


def test_shared_settings_have_a_table() -> None:
    text = "".join(map(text_of, PAGES))
    for kind in catalogue.KINDS:
        assert text.count(f"<!-- shared settings: {kind} -->") == 1


def test_sections_of_the_readme_stand_on_the_start_page(hook: ModuleType) -> None:
    wanted = re.findall(r"<!-- readme: (.+) -->", text_of(DOCS / "index.md"))
    assert "Quickstart" in wanted
    for heading in wanted:
        text = hook.readme(heading)
        assert f"## {heading}\n\n{text.splitlines()[0]}" in text_of(ROOT / "README.md")
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            assert target.startswith("http") or (DOCS / target).exists(), target
    with pytest.raises(ValueError, match="no section 'Colours'"):
        hook.readme("Colours")


def test_papers_are_links_and_no_other_host_is_asked(hook: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    text = hook.on_page_markdown("FastV, arXiv 2403.06764: 90 ± 2", page=page, config={"repo_url": ""})
    assert (
        text == "FastV, [arXiv 2403.06764](https://arxiv.org/abs/2403.06764): 90\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}2"
    )
    assert hook.on_post_page('<a class="md-source" data-md-component="source">') == '<a class="md-source">'


def test_the_manifest_of_the_page_is_read_as_the_page_says(tmp_path: Path) -> None:
    (shown,) = re.findall(r'```text\n(\{"id".*?)```', text_of(DOCS / "evaluation.md"), re.DOTALL)
    (tmp_path / "manifest.jsonl").write_text(shown)
    for name in re.findall(r'"(\w+\.(?:png|jpg))"', shown):
        Image.new("RGB", (800, 600), "white").save(tmp_path / name)
    source = Source(data=[str(tmp_path / "manifest.jsonl")], run=tmp_path / "run", boxes="xyxy")
    kinds = [sample.kind for sample in load_data(source).samples]
    assert kinds == ["exact", "yes_no", "click", "choice", "anls", "open"]


def test_the_site_shows_the_diagram_of_the_page(hook: ModuleType) -> None:
    (diagram,) = page_diagram.BLOCK.findall(text_of(DOCS / "architecture.md"))
    drawn = text_of(DOCS / "architecture.svg")
    assert drawn.startswith(page_diagram.stamp(diagram)), (
        "draw it again: python -m tools.page_diagram docs/architecture.md"
    )
    page = SimpleNamespace(file=SimpleNamespace(src_uri="architecture.md"))
    text = hook.on_page_markdown(text_of(DOCS / "architecture.md"), page=page, config={"repo_url": ""})
    assert "](architecture.svg)" in text
    assert "```mermaid" not in text


def test_a_link_out_of_the_docs_needs_its_file(hook: ModuleType) -> None:
    link = hook.LINK.search("[a](../LICENSE#top)")
    assert hook.outward(link, Path("docs"), "https://host/repo") == "](https://host/repo/blob/main/LICENSE#top)"
    with pytest.raises(FileNotFoundError, match=r"no-such-file"):
        hook.outward(hook.LINK.search("[a](../no-such-file)"), Path("docs"), "")


def public() -> dict[str, Any]:
    modules = {name: importlib.import_module(name) for name in PUBLIC}
    return {f"{m}.{name}": getattr(module, name) for m, module in modules.items() for name in module.__all__}


def is_code(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isfunction(value)


def test_every_public_name_stands_on_a_page() -> None:
    """A class or function by its own entry or as a method; a constant or alias is named in a sentence."""
    text = "\n".join(map(text_of, PAGES))
    entries = set(re.findall(r"^::: ([\w.]+)", text, re.MULTILINE))
    methods = {find(name) for name in ROWS}
    lost = []
    for name, value in public().items():
        if is_code(value):
            home = f"{value.__module__}.{value.__qualname__}"
            ok = home in entries or value in methods
        else:
            ok = f"`{name}`" in text
        lost += [] if ok else [name]
    assert not lost, f"on no page: {lost}"


def test_every_entry_exists() -> None:
    for page in PAGES:
        for entry in re.findall(r"^::: ([\w.]+)", text_of(page), re.MULTILINE):
            module, _, name = entry.rpartition(".")
            assert is_code(getattr(importlib.import_module(module), name)), entry


def test_every_public_name_has_a_docstring() -> None:
    """Of its own: a dataclass without one gets its signature, which says nothing."""
    for name, value in public().items():
        if is_code(value):
            doc = value.__doc__ or ""
            assert doc.strip(), name
            assert not doc.startswith(f"{value.__name__}("), name


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", text_of(page)), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in plain}


@pytest.mark.parametrize("page", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", CODE.sub("", text_of(page))):
        if target.startswith(("http:", "https:")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)}: {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{name_of(page)}: {target}#{anchor}"


def test_the_menu_names_every_page() -> None:
    menu = set(re.findall(r"(\S+\.md)$", text_of(ROOT / "mkdocs.yml").partition("\nnav:")[2], re.MULTILINE))
    assert menu == {page.relative_to(DOCS).as_posix() for page in PAGES}


def test_images_can_be_drawn_again() -> None:
    """Every pattern has its planted head, and what is drawn has the form of what the pages show."""
    assert set(method_pictures.PATTERNS) == {name for name, row in ROWS.items() if row["kind"] == "pattern"}
    assert set(decoding_pictures.STEPS) == {name for name, row in ROWS.items() if row["kind"] == "decoding"}
    selector = method_pictures.draw_selector(*load_checkpoint("tiny-qwen"), UIGraph(keep_ratio=0.25))
    pattern = method_pictures.draw_pattern(*method_pictures.PATTERNS["a_shape"])
    eviction = method_pictures.draw_eviction(*load_checkpoint("tiny-qwen"), KeyDiff(keep_ratio=0.25))
    llava = load_checkpoint("tiny-llava")
    rows, heads = (correction_pictures.draw(name, *llava) for name in ("image_boost", "vision_heads"))
    drawings = {"selectors/ui_graph": selector, "patterns/a_shape": pattern, "evictions/key_diff": eviction}
    drawings |= {"corrections/image_boost": rows, "corrections/vision_heads": heads}
    drawings |= {f"decodings/{name}": decoding_pictures.draw(name) for name in decoding_pictures.STEPS}
    for name, drawn in drawings.items():
        with Image.open(DOCS / "pictures" / f"{name}.png") as shown:
            assert drawn.size == shown.size
