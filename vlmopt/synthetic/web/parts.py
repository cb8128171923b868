"""Controls as HTML, and the words around them: what the places of a page are filled with."""

from __future__ import annotations

import functools
import html
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import NamedTuple

from .figures import FIGURES
from .icons import ICONS, icon
from .look import Look

AVATARS = ("#8a4fff", "#c2410c", "#0f766e", "#1d4ed8", "#be185d", "#4d7c0f", "#57534e")
STATES = {"Paid": "ok", "Pending": "warn", "Overdue": "bad", "Active": "ok", "Draft": "warn", "Failed": "bad"}
# Places that are controls with a name of their own.
CONTROLS = frozenset(("btn", "ib", "link", "nav", "tab", "check", "switch", "field", "area", "search", "lab", "select"))
# Words that stand in a field, by the field's name; others are empty.
VALUES = {
    "Name": "person", "Email": "email", "Search": "tag", "City": "city", "Country": "country", "Company": "company",
    "Phone": "phone", "Date": "date", "Amount": "price", "Time": "time", "From": "city", "To": "city", "Title": "task",
    "Destination": "city", "Arrival": "date", "Departure": "date", "Recipient": "person", "Subject": "subject",
}  # fmt: skip


class Call(NamedTuple):
    """A place `{{word:style rest}}` of a page."""

    word: str
    style: str
    rest: str


@functools.cache
def texts() -> dict[str, list[str]]:
    """Read made-up contents by sort; none of them names a control."""
    found: dict[str, list[str]] = json.loads((files(__package__) / "texts.json").read_text(encoding="utf-8"))
    return found


class Parts:
    """Fill the places of one page; `names` are those of its controls, in their order."""

    def __init__(self, rng: random.Random, look: Look, names: Iterable[str]) -> None:
        self.rng, self.look, self.names = rng, look, iter(names)
        self.turns: Counter[str] = Counter()
        self.pictured: str | None = None  # whose initials were drawn last

    def fill(self, call: Call) -> str:
        """Return what stands in a place.

        Raises:
            ValueError: an unknown word.
        """
        if call.word in texts():
            return html.escape(self.rng.choice(texts()[call.word]))
        if call.word in FIGURES:
            return FIGURES[call.word](self.rng)
        method: Callable[[Call], str] | None = getattr(self, "_" + call.word, None)
        if method is None:
            raise ValueError(f"{{{{{call.word}}}}} stands in a page, but nothing fills it")
        return method(call)

    def name(self) -> str:
        """Return the name given to the next control."""
        return next(self.names)

    def word(self, sort: str) -> str:
        return self.fill(Call(sort, "", ""))

    # Controls.

    def _btn(self, call: Call) -> str:
        name = self.name()
        mark = icon(name) if self.look.icons and name in ICONS else ""
        return f'<button type="button" class="btn {call.style}">{mark}<span>{name}</span></button>'

    def _ib(self, call: Call) -> str:
        name = self.name()
        return f'<button type="button" class="ib {call.style}" aria-label="{name}">{icon(name)}</button>'

    def _link(self, call: Call) -> str:
        return f'<a href="#" class="{call.style or "link"}">{self.name()}</a>'

    def _nav(self, call: Call) -> str:
        name = self.name()
        mark = icon(name) if name in ICONS else ""
        return f'<a href="#" class="nav {call.style}">{mark}<span>{name}</span></a>'

    def _tab(self, call: Call) -> str:
        chosen = "true" if call.style == "on" else "false"
        name = self.name()
        return f'<button type="button" role="tab" class="tab" aria-selected="{chosen}">{name}</button>'

    def _check(self, call: Call) -> str:
        name, on = self.name(), self.rng.choice(("", " checked"))
        return f'<label class="check"><input type="checkbox"{on}><span>{name}</span></label>'

    def _switch(self, call: Call) -> str:
        name, on = self.name(), self.rng.choice(("", " checked"))
        box = f'<input type="checkbox" role="switch"{on}>'
        inside = f'<span class="grow">{name}</span>{box}' if call.style == "after" else f"{box}<span>{name}</span>"
        return f'<label class="switch">{inside}</label>'

    def _field(self, call: Call) -> str:
        return f'<input class="field {call.style}" placeholder="{self.name()}">'

    def _area(self, call: Call) -> str:
        return f'<textarea class="field {call.style}" placeholder="{self.name()}"></textarea>'

    def _search(self, call: Call) -> str:
        return f'<span class="search {call.style}">{icon("Search")}<input placeholder="{self.name()}"></span>'

    def _lab(self, call: Call) -> str:
        """Write a field under its name."""
        name = self.name()
        value = "" if name not in VALUES or self.rng.random() < 0.3 else self.word(VALUES[name])
        return f'<label class="lab {call.style}"><span>{name}</span><input class="field" value="{value}"></label>'

    def _select(self, call: Call) -> str:
        """Write `Name=a|b`: a list of choices under its name."""
        chosen = self.rng.choice(call.rest.partition("=")[2].split("|"))
        return (
            f'<label class="lab {call.style}"><span>{self.name()}</span>'
            f'<select class="field"><option>{chosen}</option></select></label>'
        )

    # Contents.

    def _icon(self, call: Call) -> str:
        return icon(self.rng.choice(call.rest.split("|")))

    def _pick(self, call: Call) -> str:
        return self.rng.choice(call.rest.split("|"))

    def _turn(self, call: Call) -> str:
        """Write `A|B|C`: the next of them every time, over and over."""
        words = call.rest.split("|")
        self.turns[call.rest] += 1
        return words[(self.turns[call.rest] - 1) % len(words)]

    def _event(self, call: Call) -> str:
        """Write an entry of a calendar; more often nothing."""
        if self.rng.random() > float(call.rest or 0.3):
            return ""
        return f'<p class="ev {self.rng.choice(("", "alt", "other"))}">{self.word("task")}</p>'

    def _number(self, call: Call) -> str:
        """Count up; places of a page with different texts count for themselves."""
        self.turns[call.rest] += 1
        return str(self.turns[call.rest] + int(call.rest or 0))

    def _int(self, call: Call) -> str:
        low, high = (int(value) for value in call.rest.split())
        return f"{self.rng.randint(low, high):,}"

    def _id(self, call: Call) -> str:
        """Draw a year or an order's number, without a thousands separator."""
        return self._int(call).replace(",", "")

    def _person(self, _: Call) -> str:
        """Return the person whose initials were drawn just before, or anybody."""
        person, self.pictured = self.pictured or f"{self.word('first')} {self.word('last')}", None
        return person

    def _email(self, _: Call) -> str:
        return f"{self.word('first').lower()}.{self.word('last').lower()}@example.org"

    def _phone(self, _: Call) -> str:
        parts = (self.rng.randint(low, high) for low, high in ((1, 98), (100, 999), (100, 999), (10, 99)))
        return "+" + " ".join(map(str, parts))

    def _price(self, call: Call) -> str:
        return f"${self.rng.randint(3, int(call.rest or 400)):,}.{self.rng.choice(('00', '50', '90', '99', '25'))}"

    def _date(self, _: Call) -> str:
        return f"{self.rng.randint(1, 28)} {self.word('month')}"

    def _time(self, _: Call) -> str:
        return f"{self.rng.randint(6, 22):02}:{self.rng.choice(('00', '10', '15', '30', '45', '50'))}"

    def _percent(self, _: Call) -> str:
        return f"{self.rng.randint(2, 98)} %"

    def _change(self, _: Call) -> str:
        up = self.rng.random() < 0.6
        return f'<span class="{"ok" if up else "bad"}">{"+" if up else "−"}{self.rng.uniform(0.2, 19):.1f} %</span>'

    def _file(self, _: Call) -> str:
        return f"{self.word('stem')}-{self.rng.randint(1, 40)}.{self.word('suffix')}"

    def _size(self, _: Call) -> str:
        return f"{self.rng.randint(2, 980)} {self.rng.choice(('KB', 'MB'))}"

    def _state(self, _: Call) -> str:
        text, kind = self.rng.choice(list(STATES.items()))
        return f'<span class="{kind}">{text}</span>'

    def _avatar(self, call: Call) -> str:
        first, last = self.word("first"), self.word("last")
        self.pictured = f"{first} {last}"
        ink = self.rng.choice(AVATARS)
        return f'<span class="avatar {call.style}" style="background:{ink}">{first[0]}{last[0]}</span>'

    def _bar(self, _: Call) -> str:
        return f'<span class="bar"><i style="width:{self.rng.randint(8, 95)}%"></i></span>'

    def _prose(self, call: Call) -> str:
        """Draw so many different sentences."""
        return " ".join(self.some("sentence", int(call.rest or 2)))

    def some(self, sort: str, count: int) -> Sequence[str]:
        return self.rng.sample(texts()[sort], count)
