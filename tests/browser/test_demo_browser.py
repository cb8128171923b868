"""The demo in a real browser: upload, run, slide, take the policy home; on a wide screen and on a telephone."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vlmopt
from vlmopt import catalogue
from vlmopt.synthetic import screen

PATIENCE = 300_000  # milliseconds: a loaded machine draws slowly


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Served by `vlmopt demo`; ending the command ends the server too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    words = [sys.executable, "-m", "vlmopt", "demo", "--no-browser", "--port", str(number)]
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"}
    with (home / "log").open("w") as log:
        server = subprocess.Popen(words, cwd=home, env=environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + PATIENCE / 1000
            while True:
                try:
                    with urllib.request.urlopen(f"http://localhost:{number}/_stcore/health", timeout=5):
                        break
                except OSError:
                    assert server.poll() is None, (home / "log").read_text()
                    assert time.monotonic() < end
                    time.sleep(0.2)
            yield number
        finally:
            server.terminate()
            assert server.wait(30) == 0
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("localhost", number), timeout=5)


def test_nobody_else_reaches_the_page(port: int) -> None:
    """The server listens on the loopback interface alone."""
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            pytest.skip("no /proc/net/tcp: not Linux")
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        listening += [row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    assert listening
    assert set(listening) <= {"0100007F", "00000000000000000000000001000000"}


def test_from_an_upload_to_the_policy(port: int, browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "my <b>screen.png"
    screen(5).image.save(file)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url))
    page.goto(f"http://localhost:{port}")
    page.get_by_role("radio", name="Upload").click()
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_text("Upload an image or a short video.").wait_for(state="detached")
    assert page.get_by_role("textbox", name="Question").input_value() == "Describe the picture."
    page.get_by_test_id("stBaseButton-primary").click()  # waits until it can be pressed
    page.get_by_role("tab", name="Take away").wait_for()
    kept = page.get_by_text("visual tokens: clear with a green outline")
    assert kept.inner_text().startswith("64 of 256")

    handle = page.get_by_role("slider", name="Preview another budget")
    handle.focus()
    for _ in range(5):
        handle.press("ArrowRight")
    page.wait_for_function("document.body.innerText.includes('128 of 256 visual tokens')")
    page.get_by_text("Answers and figures are for 25 %.").wait_for()
    page.get_by_role("button", name="Run at 50 %").wait_for()

    assert page.get_by_test_id("stException").count() == 0
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(1500)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        upload = page.get_by_role("radio", name="Upload").bounding_box()
        within = page.get_by_role("radiogroup", name="Image").bounding_box()
        assert upload is not None
        assert within is not None
        assert upload["x"] + upload["width"] <= within["x"] + within["width"] + 1
        assert len(page.screenshot(path=tmp_path / f"{width}.png")) > 20_000
        outside = "es => es.filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
        assert page.locator("[data-testid=stImage] img").evaluate_all(outside) == 0

    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_role("tab", name="Take away").click()
    with page.expect_download() as caught:
        page.get_by_role("button", name="Policy").click()
    taken = json.loads(Path(caught.value.path()).read_text())
    assert vlmopt.Policy.from_dict(taken) == vlmopt.presets()[catalogue.default()]
    assert not trouble
    assert {url for url in asked if not url.startswith((f"http://localhost:{port}/", "data:", "blob:"))} == set()
    context.close()


def test_one_screen_shows_answers_gains_and_images_and_a_reload_keeps_them(port: int, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"http://localhost:{port}")
    page.get_by_test_id("stBaseButton-primary").click()
    page.get_by_role("button", name="Stop").wait_for()
    page.reload()  # in the middle of the run
    for _ in range(2):  # then once more, when it is over
        page.get_by_role("tab", name="Budget sweep").wait_for()
        sides = page.locator(".st-key-sides")  # not the images of tabs that are out of sight
        images, gains = sides.locator("img"), page.locator(".st-key-gains-0 [data-testid=stMetric]")
        images.nth(1).wait_for()
        gains.nth(4).wait_for()
        page.wait_for_timeout(1000)
        answers = sides.get_by_text("(63, 84)", exact=True)
        shown = [sides.get_by_text("Dense", exact=True), *answers.all(), *gains.all(), *images.all()]
        assert (answers.count(), gains.count(), images.count()) == (2, 5, 2)
        for part in shown:
            box = part.bounding_box()
            assert box is not None
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= 900
        words = gains.all_inner_texts()
        assert "256 → 64" in words[0]
        assert any(said in words[1] for said in ("× faster", "× slower", "as fast"))
        assert "MiB" in words[-1]
        page.reload()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_the_theme_of_the_browser(port: int, browser: Any, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"http://localhost:{port}")
    page.get_by_role("radio", name="Screenshot").wait_for()
    ground = page.locator("[data-testid=stApp]").evaluate("e => getComputedStyle(e).backgroundColor")
    red, green, blue = (int(part) for part in re.findall(r"\d+", ground)[:3])
    assert (red + green + blue < 3 * 64) == (scheme == "dark")
    context.close()
