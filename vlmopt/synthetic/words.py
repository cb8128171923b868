"""The closed vocabulary of the generated images: every word on which a question or an answer can depend."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 220, 40),
    "green": (40, 150, 60),
    "cyan": (40, 200, 210),
    "blue": (40, 70, 210),
    "purple": (140, 50, 170),
    "black": (20, 20, 24),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star")
KINDS: tuple[str, ...] = ("button", "checkbox", "field", "link", "tab")
LABELS: tuple[str, ...] = (
    "Save", "Open", "Close", "Cancel", "Delete", "Edit", "Search", "Help", "Print", "Send", "Reply", "Home",
    "Login", "Next", "Back", "Copy", "Paste", "Undo", "Share", "Exit", "Name", "Email", "Start", "Stop",
)  # fmt: skip
TITLES: tuple[str, ...] = ("Mail", "Files", "Music", "Photos", "Notes", "Settings")
THEMES: tuple[str, ...] = ("light", "dark")
SIDES: tuple[str, ...] = ("top", "bottom", "left", "right")
BACKGROUND = "background"
TITLE = "title"

CELL = 14  # pixels; one visual token
LATTICE = 7  # pixels; click answers lie on multiples of this
LARGEST = 280  # pixels; no image side is longer
COORDINATES: tuple[int, ...] = tuple(range(LATTICE, LARGEST, LATTICE))
MAX_COUNT = 8

FIRST_SLOT: tuple[str, ...] = (*COLOURS, *LABELS, *TITLES)  # what distinguishes one thing from the next
SECOND_SLOT: tuple[str, ...] = (*SHAPES, *KINDS, TITLE, BACKGROUND)  # what sort of thing a cell belongs to
