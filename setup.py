"""Say what pyproject.toml cannot.

One installed name, `vlmopt`, has three packages that lie in folders beside it. The package's description is the README,
with links that lead out of the repository.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ("pruning", "attention_fix", "apps")
PAGES, FILES = "https://github.com/vlmopt/vlmopt", "https://raw.githubusercontent.com/vlmopt/vlmopt/main"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:)([^)\s]+)\)")


def outward(link: re.Match[str]) -> str:
    """Turn a link within the repository into an address; an image needs that of the file itself."""
    image, text, target = link.groups()
    if target.startswith("#"):
        return f"[{text}]({PAGES}{target})"
    return f"{image}[{text}]({FILES if image else f'{PAGES}/blob/main'}/{target})"


setup(
    packages=[
        *find_packages(include=["vlmopt", "vlmopt.*"]),
        *(f"vlmopt.{name}" for folder in FOLDERS for name in find_packages(include=[folder, f"{folder}.*"])),
    ],
    package_dir={f"vlmopt.{folder}": folder for folder in FOLDERS},
    long_description=LINK.sub(outward, Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
