"""Give every control of a page a name that no other control bears."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..words import LABELS

# Labels that fit a place, by the place's sort; "*tools" in a page stands for them.
POOLS: dict[str, tuple[str, ...]] = {
    "tools": ("Save", "Open", "Print", "Copy", "Paste", "Undo", "Share", "Delete", "Edit", "Search", "Help"),
    "go": ("Next", "Back", "Start", "Stop", "Home", "Exit"),
    "leave": ("Close", "Cancel", "Exit", "Back", "Undo"),
    "site": ("Home", "Help", "Search", "Login", "Share", "Start"),
    "mail": ("Send", "Reply", "Delete", "Print", "Share", "Edit", "Copy", "Paste"),
    "ways": ("Email", "Print", "Share", "Copy", "Save", "Search", "Reply", "Start", "Open", "Login", "Stop", "Send"),
    "ask": ("Name", "Email", "Search"),
    "any": LABELS,
}


def allowed(options: str) -> list[str]:
    """Return the names that `A|B|*pool` stands for."""
    return [name for option in options.split("|") for name in POOLS.get(option.removeprefix("*"), (option,))]


def assign(options: Sequence[Sequence[str]], rng: random.Random) -> list[str]:
    """Draw one of the options for every control, all different, at random (a matching by augmenting paths).

    Raises:
        ValueError: too few different names for these controls.
    """
    holder: dict[str, int] = {}

    def place(control: int, tried: set[str]) -> bool:
        for name in rng.sample(options[control], len(options[control])):
            if name not in tried:
                tried.add(name)
                if name not in holder or place(holder[name], tried):
                    holder[name] = control
                    return True
        return False

    for control in rng.sample(range(len(options)), len(options)):
        if not place(control, set()):
            raise ValueError(f"there are more controls than names: none is left for {'|'.join(options[control])}")
    names = {control: name for name, control in holder.items()}
    return [names[control] for control in range(len(options))]
