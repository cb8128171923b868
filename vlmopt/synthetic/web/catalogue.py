"""The pages and their fixed split: a page is seen in training or held out, whatever it is filled with."""

from __future__ import annotations

import functools
from importlib.resources import files

from ... import choices

TRAIN: tuple[str, ...] = (
    "admin-users", "analytics-dark", "bank-accounts", "booking-search", "calendar-week", "chat-team", "cloud-console",
    "code-editor", "crm-contacts", "dialog-confirm", "docs-reference", "editor-text", "feed-social", "files-list",
    "flight-results", "form-application", "gallery-photos", "helpdesk-ticket", "home-automation", "invoice-editor",
    "kanban-board", "login-centred", "mail-inbox", "map-places", "monitor-servers", "news-front", "player-music",
    "printer-dialog", "profile-public", "recipe-page", "settings-system", "shop-grid", "sheet-numbers", "wizard-setup",
)  # fmt: skip
HELD_OUT: tuple[str, ...] = (
    "calendar-month", "chat-phone", "compose-mail", "course-lesson", "dashboard-sales", "files-grid", "forum-thread",
    "login-split", "product-page", "settings-account", "studio-image", "table-orders",
)  # fmt: skip
SPLITS: dict[str, tuple[str, ...]] = dict(zip(choices.SPLITS, (TRAIN, HELD_OUT), strict=True))
PAGES: tuple[str, ...] = tuple(sorted(TRAIN + HELD_OUT))


def split_of(page: str) -> str:
    """Return the split that a page belongs to.

    Raises:
        ValueError: no such page.
    """
    for split, pages in SPLITS.items():
        if page in pages:
            return split
    raise ValueError(f"no page is called {page!r}: choose from {', '.join(PAGES)}")


@functools.cache
def template(page: str) -> str:
    """Read a page's HTML with its places to fill."""
    split_of(page)
    return _read(f"{page}.html")


@functools.cache
def base_style() -> str:
    """Read the style sheet that the pages share."""
    return _read("base.css")


def _read(name: str) -> str:
    return (files(__package__) / "pages" / name).read_text(encoding="utf-8")
