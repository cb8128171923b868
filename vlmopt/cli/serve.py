"""`vlmopt serve`: any policy behind transformers' own OpenAI-compatible server, one request at a time."""

from __future__ import annotations

import argparse
from typing import Any

from ..api import optimize
from ..checkpoints import HERE as CHECKPOINTS
from ..checkpoints import bundled
from ..loading import check_device
from ..policy import Policy
from .demo import HERE as THIS_MACHINE

NEEDS = (
    "the server is that of transformers 5.10 or newer: pip install 'transformers[serving]>=5.10', or vlmopt with its "
    "extra 'serve'"
)


def execute(options: argparse.Namespace) -> None:
    """Load the model, optimize it, and serve it until the process is ended."""
    policy = Policy.load(options.policy)
    server = server_class(policy)
    if options.host not in THIS_MACHINE:
        print(f"note: whoever reaches {options.host} can use this model; the server asks for no password")
    model = str(CHECKPOINTS / options.model) if options.model in bundled() else options.model
    print(f"serving model {model!r} at http://{options.host}:{options.port}/v1", flush=True)
    server(
        force_model=model,
        device=str(check_device(options.device)),
        dtype=options.dtype,
        host=options.host,
        port=options.port,
        non_blocking=True,  # it then calls `start_server` where it would run
    )


def server_class(policy: Policy) -> type[Any]:
    """Make the server of transformers, whose model is optimized whenever it is loaded.

    Raises:
        ValueError: this release of transformers has no such server, or what it needs is not installed.
    """
    try:
        from transformers.cli.serve import Serve
        from transformers.utils.import_utils import is_serve_available
    except ImportError as error:
        raise ValueError(NEEDS) from error
    if not is_serve_available():
        raise ValueError(NEEDS)

    class Server(Serve):
        def start_server(self) -> None:
            manager = self._model_manager
            load = manager._load_model
            manager._load_model = lambda *args, **kwargs: optimize(load(*args, **kwargs), policy)  # after `/reset`
            for loaded in manager.loaded_models.values():
                optimize(loaded.model, policy)
            self.server.run()

    return Server
