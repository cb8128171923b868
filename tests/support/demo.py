"""The demo page as a test drives it: without a browser, jobs waited for."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from vlmopt import catalogue
from vlmopt.apps.page.jobs import Job
from vlmopt.apps.page.presets import LINE

PAGE = Path(__file__).resolve().parents[2] / "apps" / "demo.py"
PATIENCE = 120  # seconds for one job


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """What a server does once, AppTest does for every run: it looks for components in all installed packages. And
    garbage is collected by Streamlit and `measure`, in all that the whole test run has imported.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", lambda *args, **kwargs: [])
        gc.collect()
        gc.freeze()
        yield
        gc.unfreeze()


def opened() -> AppTest:
    """A fresh browser session."""
    return AppTest.from_file(str(PAGE), default_timeout=PATIENCE).run()


def settled(page: AppTest) -> AppTest:
    """Once the running job has ended and the page has shown what came of it."""
    job: Any = page.session_state["session"].job
    if isinstance(job, Job):
        assert job.done.wait(PATIENCE)
    return page.run()


def ran(page: AppTest) -> AppTest:
    """After a press on Run."""
    page.button(key="run").click().run()
    return settled(page)


def choose(page: AppTest, preset: str) -> AppTest:
    """After a click on a preset, in its group."""
    page.selectbox(key="group").set_value(catalogue.presets()[preset].group).run()
    return page.radio(key="preset").set_value(preset).run()


def typed(page: AppTest, line: str) -> AppTest:
    """After a policy was typed as a line."""
    page.selectbox(key="group").set_value(LINE).run()
    return page.text_input(key="line").set_value(line).run()


def texts(page: AppTest) -> str:
    """Everything the page says in words, its backslashes of escaping left out."""
    shown = (*page.markdown, *page.caption, *page.error, *page.warning, *page.info)
    return "\n".join(str(element.value) for element in shown).replace("\\", "")
