"""Engine tests: skipped, with the reason, where vLLM is not installed."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# vLLM reads these when it is imported; they are the test's, not the product's.
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1",
    VLLM_HOST_IP="127.0.0.1", GLOO_SOCKET_IFNAME="lo",  # where a machine has no other address
    VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS="3600",  # a busy machine, or one that sleeps, is no failure of several ranks
)  # fmt: skip
if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str | None:
    missing = importlib.util.find_spec("vllm") is None
    return "vllm is not installed: the tests of vlmopt-vllm are skipped" if missing else None


def together(nodeid: str) -> str:
    """Tests that name one checkpoint, or else those of a file, run one behind another: their engine starts once."""
    named = re.search(r"[\[-]((tiny|qwen|llava|internvl)\w+)[\]-]", nodeid)
    return named[1] if named else nodeid.split("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: together(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand them out together, too; xdist 3.8 sees no groups under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid)

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a checkpoint by its name."""
    from .checkpoints import checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    return lambda name: checkpoint(name, folder)


@pytest.fixture(scope="session")
def images() -> list[Any]:
    """A wide screen and a tall scene under a grain, so that no two cells are alike and few choices are ties."""
    return [grained(image, seed) for seed, image in enumerate(drawn())]


@pytest.fixture(scope="session")
def framed(images: list[Any]) -> list[Any]:
    """The same between plain bars on two sides: cells that repeat others, and padding."""
    out = []
    for image in images:
        frame = image.copy()
        frame.paste((200, 60, 30), (0, 0, image.width, image.height // 4))
        frame.paste((20, 90, 160), (0, 0, image.width // 4, image.height))
        out.append(frame)
    return out


def drawn() -> list[Any]:
    from vlmopt.synthetic import scene, screen

    return [screen(777_000_000, (224, 140)).image, scene(777_000_001, (140, 196)).image]


def grained(image: Any, seed: int) -> Any:
    import numpy as np
    from PIL import Image

    grain = np.random.default_rng(seed).integers(-60, 61, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image, dtype=int) + grain).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def engine_of(checkpoints: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    """Start an engine, unless it runs; it ends the others, or stands beside them."""
    from .engines import Engine, end

    running: dict[str, Engine] = {}

    def start(name: str, policy: Any = None, beside: bool = False, **settings: Any) -> Engine:
        key = repr((name, policy, settings))
        if key not in running:
            if running and not beside:
                end(running)
            running[key] = Engine(checkpoints(name), policy, **settings)
        return running[key]

    yield start
    end(running)


@pytest.fixture(scope="session")
def processed(checkpoints: Callable[[str], Path]) -> Callable[..., Any]:
    """What an engine's front end makes of a prompt, with policies per request. No engine is started."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from .engines import configured

    made: dict[str, Any] = {}

    def run(name: str, data: dict[str, Any], text: str, settings: dict[str, Any]) -> Any:
        if name not in made:
            config = configured(checkpoints(name), mm_processor_kwargs={"vlmopt": None})
            made[name] = MULTIMODAL_REGISTRY.create_processor(config.model_config)
        return made[name](text, made[name].info.parse_mm_data(data), hf_processor_mm_kwargs=settings)

    return run
