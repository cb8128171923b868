"""Draw the Mermaid diagram of a page for the site: `python -m tools.page_diagram docs/architecture.md`.

GitHub draws the block itself. The site shows an SVG that lies beside the page, since a page asks no other host for a
script; a test compares what it was drawn from with the page. Mermaid comes from npm, the browser is Chromium.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from vlmopt.synthetic.web import find_browser

BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MERMAID = "mermaid@11.17.2"
DRAW = """async (text) => {
    mermaid.initialize({startOnLoad: false, theme: "neutral", htmlLabels: false, deterministicIds: true,
                        flowchart: {htmlLabels: false, wrappingWidth: 400}, fontFamily: "sans-serif"});
    return (await mermaid.render("diagram", text)).svg;
}"""


def stamp(diagram: str) -> str:
    """Return the comment by which a drawing tells what it was drawn from."""
    return f"<!-- sha256 {hashlib.sha256(diagram.encode()).hexdigest()} -->\n"


def main(page: Path) -> None:
    from playwright.sync_api import sync_playwright

    (diagram,) = BLOCK.findall(page.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as engine:
        subprocess.run(["npm", "pack", "--silent", MERMAID], cwd=folder, check=True)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            archive.extract("package/dist/mermaid.min.js", folder, filter="data")
        browser = engine.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        sheet = browser.new_page()
        sheet.add_script_tag(path=Path(folder, "package/dist/mermaid.min.js"))
        drawn = sheet.evaluate(DRAW, diagram)
        browser.close()
    drawn = drawn.replace('style="', 'style="background: white; ', 1)  # the site may be dark
    page.with_suffix(".svg").write_text(stamp(diagram) + drawn + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
