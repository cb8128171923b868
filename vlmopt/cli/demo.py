"""`vlmopt demo`: the page that shows what a model looks at, in a browser on this machine."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

HERE = ("localhost", "127.0.0.1", "::1")


def execute(options: argparse.Namespace) -> None:
    words = command(options)
    if options.address not in HERE:
        print(f"note: whoever reaches {options.address} can use this page, load models and upload files")
    with subprocess.Popen(words) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())  # a server left behind would hold the port
        code = server.wait()
    if code not in (0, -signal.SIGINT, -signal.SIGTERM, 130, 143):  # ended from outside is ended as wanted
        raise ValueError(f"the page could not be served (exit code {code}); Streamlit says why above")


def command(options: argparse.Namespace) -> list[str]:
    """Return the command line that serves the page.

    Raises:
        ValueError: a port that is none, Streamlit or the page is not installed.
    """
    if not 1 <= options.port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {options.port}")
    missing = [name for name in ("streamlit", "altair") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the demo needs {' and '.join(missing)}: pip install {' '.join(missing)}, or vlmopt with its extra 'demo'"
        )
    flags = [f"--server.address={options.address}", f"--server.port={options.port}"]
    flags.append(f"--server.headless={str(options.no_browser).lower()}")
    own = ["--", "--bundled-only"] if options.bundled_only else []  # what stands behind "--" goes to the page
    run = [sys.executable, "-m", "streamlit", "run", str(page())]  # which reads apps/.streamlit/config.toml
    return [*run, *flags, *own]


def page() -> Path:
    """Return the page's script: a client of this package, which is started, never imported."""
    apps = importlib.util.find_spec("vlmopt.apps")
    for folder in (apps.submodule_search_locations or []) if apps is not None else []:
        if (script := Path(folder) / "demo.py").is_file():
            return script
    raise ValueError("the page (apps/demo.py) is not installed; install vlmopt with its apps, or use a checkout")
