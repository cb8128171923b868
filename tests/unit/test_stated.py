"""What answers state in the end: style, reasoning and markup change nothing, and nothing ambiguous is guessed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmopt.evaluation.data import Sample
from vlmopt.evaluation.scoring import Marking, Said, grade
from vlmopt.metrics import is_yes
from vlmopt.metrics.answers import choice, exact
from vlmopt.metrics.clicks import clicked, point, pointed
from vlmopt.metrics.stated import stated

STYLES = (
    "{}", "{}.", "**{}**", "**{}", "`{}`", "*{}*", "__{}__", "- {}", "> {}", "# Answer\n{}", "<answer>{}</answer>",
    "<think>A cat? No (1, 2).</think>{}", "Is it A, (1, 2)? Hmm.</think>\n\n{}", "<think>A</think><answer>{}</answer>",
    "Answer: {}", "**Answer:** {}", "The answer is {}.", "The correct answer is **{}**.", "My final answer: {}",
    r"\boxed{{{}}}", r"$\boxed{{\text{{{}}}}}$", '{{"answer": "{}"}}', '```json\n{{"answer": "{}"}}\n```',
    "答案：{}", "正确答案是{}。", "<|begin_of_box|>{}<|end_of_box|>", "◁think▷no◁/think▷{}", "[THINK]no[/THINK]{}",
    "Answer: (3, 4) or C?\nNo. The answer is {}",
)  # fmt: skip
BOUNDED = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.mark.parametrize("style", STYLES)
def test_style_changes_nothing(style: str) -> None:
    """The letter, the words, yes and no, and the point are those of the bare answer."""
    for letter in ("B", "b", "(B)", "(b)", "[B]"):
        assert choice(style.format(letter), ["cat", "dog"]) == 1
    assert choice(style.format("a dog"), ["cat", "dog"]) == 1
    assert exact(style.format("two dogs"), ["two dogs"])
    assert [is_yes(style.format(word), "stated") for word in ("yes", "No", "NO")] == [True, False, False]
    assert point(style.format("(490, 290)")) == (490, 290)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Answer: A dog", 1), ("A dog", 1), ("Answer: A big dog", 1), ("A big dog", 1), ("A cat", 0), ("Cat.", 0),
        ("<think>A cat? No.</think>B", 1), ("The correct answer is **B**.", 1), ("Option B", 1),
        ("The answer is B dog", 1),
        ("B\nbecause it barks", 1), ("B because it barks", 1), ("B - dog", 1), ("B: dog", 1),
        ("The answer is (B) dog", 1),
        ("The answer is A because it is red", 0), ("I choose B.", 1), ("I choose a dog", 1), ("Answer is option B", 1),
        ("选B", 1), ("故选：（B）", 1), ("Ｂ", 1), ("B.\nOption A is wrong.", 1), ("A: cat? No.\nFinal answer: B", 1),
        ("The answer is A.\nWait, the answer is B.", 1), ("Answer: B\n\nThe dog barks.", 1), ("B<|im_end|>", 1),
        ("<b>B</b>", 1), ("“B”", 1),
        ("A. cat\nB. dog\n\nB", 1), ("I think it's B", 1), ("It is B.", 1), ("The answer's B", 1), ("Go with B.", 1),
        ("It's not A. It's B.", 1), ("The answer is not A, it is B.", 1), ("It should be B", 1), ("So (B).", 1),
        ("It is a dog", 1), ("It is not A", None),
        ("A or B", None), ("A and B", None), ("A, B", None), ("A/B", None), ("The answer is A or B", None),
        ("A. cat\nB. dog", None), ("Option A is wrong, option B is right", None), ("The answer is not A", None),
        ("it is the dog, not the cat", None), ("<think>It must be A", None), ("C", None), ("", None),
    ],
)  # fmt: skip
def test_choices_are_read_or_not_guessed(answer: str, found: int | None) -> None:
    assert choice(answer, ["cat", "dog"]) == found


@pytest.mark.parametrize(
    ("answer", "place", "units"),
    [
        ("x1=490, y1=290", (490, 290), None), ("x1=1, y1=2, x2=3, y2=4", (2, 3), None),
        ("(50%, 30%)", (50, 30), "hundred"),
        ("x: 50 %, y: 30 %", (50, 30), "hundred"), ("(490px, 290px)", (490, 290), None),
        ("<loc0300><loc0500>", (500, 300), "loc"), ("<loc0100><loc0200><loc0300><loc0400> dog", (300, 200), "loc"),
        ('<points x1="50" y1="30">', (50, 30), None),
        ('<points x1="5" y1="3" x2="9" y2="9" alt="a">a</points>', (5, 3), None),
        ('{"x": 10, "y": 20, "width": 30, "height": 40}', (25, 40), None),
        ('{"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}', (2, 3), None),
        ("left=1, top=2, right=3, bottom=4", (2, 3), None),
        ('{"point_2d": [490, 290], "label": "a"}', (490, 290), None), ("（490，290）", (490, 290), None),
        (r"$\left(490, 290\right)$", (490, 290), None), ("x is 490 and y is 290", (490, 290), None),
        ('{"y": 20, "x": 10}', (10, 20), None), ("left=1, top=2, width=4, height=4", (3, 4), None),
        ("top-left (40,20) bottom-right (60,40)", (50, 30), None), ("Click at 50, 30.", (50, 30), None),
        ("upper left corner: 40, 20; lower right corner: 60, 40", (50, 30), None),
        ("The coordinates are: 50, 30", (50, 30), None), ("I would tap the point 5.5, 3.", (5.5, 3), None),
        ("click [40, 20, 60, 40]", (50, 30), None), ("click (40, 20), (60, 40)", (50, 30), None),
        ("Not (1, 2). The answer is (3, 4).", (3, 4), None), ("<box>[[1,2,3,4]]</box>", (2, 3), None),
    ],
)  # fmt: skip
def test_points_in_more_forms(answer: str, place: tuple[float, float], units: str | None) -> None:
    assert pointed(answer)[:2] == (pytest.approx(place), units)


def test_thoughts_do_not_click() -> None:
    assert point("I click 3 times, then 4, 5 and 6 more") is None
    assert point("<think>(1, 2)") is None
    assert point("<think>(1, 2)</think>nowhere") is None


def test_units_that_an_answer_says_go_before_those_of_the_model() -> None:
    assert clicked("(50%, 30%)", "pixels", (200, 100)) == (100, 30)
    assert clicked("<loc0256><loc0512>", "unit", (200, 100)) == (100, 25)
    assert clicked("(500, 500)", "thousand", (200, 100)) == (100, 50)
    assert clicked("nowhere", "pixels", (200, 100)) is None


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("There is no dog.", False), ("There isn't a dog.", False), ("There is a dog.", True),
        ("Yes, there is no dog", True),
        ("The picture shows a dog.", True), ("", None), ("I cannot tell.", None), ("Maybe.", None), ("A dog", None),
        ("Answer: yes or no? No", False), ("Yes/No: Yes", True), ("yes or no", None), ("By its ears, yes.", True),
        ("There is a dog without a collar.", True), ("I can see a dog that isn't moving.", True),
        ("There is a dog with no collar", True), ("There is a cat, but no dog.", False), ("Without a dog.", False),
        ("A dog is clearly visible.", True), ("No dog is visible.", False),
        ("没有", False), ("是的，有。", True), ("<think>Yes? No dog.", None), ('{"answer": false}', False),
    ],
)  # fmt: skip
def test_yes_and_no_are_read_or_not_guessed(answer: str, yes: bool | None) -> None:
    assert is_yes(answer, "stated") is yes


def test_released_parsers_stay_as_they_were() -> None:
    """POPE's script reads `**No**`, "NO" and nothing as yes; figures of papers can be had again."""
    for answer in ("**No**", "NO", "", "<think>maybe</think>NO"):
        assert is_yes(answer) is True
    assert [is_yes("**No**", parser) for parser in ("contractions", "strict", "stated")] == [True, False, False]
    asked = Sample(id="1", question="?", kind="yes_no", answer="no")
    assert grade(asked, Said(text="**No**"), Marking()).correct is True
    assert grade(asked, Said(text="**No**"), Marking(parser="reference")).correct is False


def test_captions_and_anls_leave_reasoning_out() -> None:
    caption = Sample(id="1", question="?", kind="caption")
    text = "<think>Perhaps a cat.</think>A dog barks."
    assert grade(caption, Said(text=text), Marking()).metrics["words"] == 3
    assert grade(caption, Said(text=text), Marking(parser="reference")).metrics["words"] > 3
    pytest.importorskip("rapidfuzz")
    read = Sample(id="1", question="?", kind="anls", answer="total 5")
    assert grade(read, Said(text="**Answer:** Total 5"), Marking()).correct == 1
    assert grade(read, Said(text="**Answer:** Total 5"), Marking(parser="reference")).correct == 0


def test_what_only_looks_like_markup_stays() -> None:
    for text in ("3*4*5", "snake_case_name", "costs $5 and $6", "a < b > c", "$5"):
        assert stated(text) == text


@BOUNDED
@given(
    st.text(alphabet=st.sampled_from("AB()[]{}<>/\\*_`$ \n.,:%=xy12answerboxedthink\"'答案选")), st.sampled_from(STYLES)
)
def test_any_text_is_read_or_left(text: str, style: str) -> None:
    """No text raises, hangs or gives a choice or a place that is none."""
    answer = style.format(text)
    assert choice(answer, ["cat", "dog"]) in (None, 0, 1)
    assert is_yes(answer, "stated") in (None, True, False)
    found = pointed(answer)
    assert found is None or all(isinstance(part, float) for part in found.place)


@BOUNDED
@given(st.integers(0, 4), st.sampled_from(STYLES), st.text(alphabet=st.sampled_from("catdog A.,\n"), max_size=40))
def test_a_stated_letter_wins_over_any_thoughts(number: int, style: str, thoughts: str) -> None:
    answer = f"<think>{thoughts}</think>" + style.format("ABCDE"[number])
    assert choice(answer, ["cat", "dog", "man", "tree", "house"]) == number
