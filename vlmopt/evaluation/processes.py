"""One process or many: who this one is, and the lock that keeps two runs out of one directory."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import get_cpu_distributed_information
from filelock import FileLock, Timeout

PATIENCE = timedelta(days=30)  # a process that is done early waits for the slowest
PLAIN = ("cpu", "cuda")  # devices whose processes can meet through gloo; answers travel as files
UNLOCKABLE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # file systems without locks: two runs go unnoticed there


@dataclass(frozen=True)
class Processes:
    """The processes that `accelerate launch` or `torchrun` started, or this one alone."""

    rank: int
    count: int
    device: torch.device
    state: Any

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.state.wait_for_everyone()

    def check_shared(self, run: Path) -> None:
        """Check that this process sees the run directory of the first one.

        Raises:
            ValueError: it does not.
        """
        if not (run / "run.json").exists():
            raise ValueError(
                f"process {self.rank} of {self.count} does not see {run.absolute()}: --out must lie on a file system "
                "that all machines share"
            )


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the launched processes, each with a device of its own where there are several.

    Raises:
        ValueError: several processes were launched, but only one can be joined.
    """
    launched = get_cpu_distributed_information().world_size
    joined = {"backend": "gloo", "timeout": PATIENCE} if launched > 1 and device.type in PLAIN else {}
    state = PartialState(cpu=device.type == "cpu", **joined)
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched on {device.type}, but {state.num_processes} can be joined: each would "
            "ask everything again"
        )
    try:
        own = state.device if launched > 1 and device.type != "cpu" else device
        yield Processes(state.process_index, state.num_processes, own, state)
    finally:
        if launched > 1:
            state.destroy_process_group()


@contextmanager
def locked(run: Path, team: Processes) -> Iterator[None]:
    """Hold a run directory until the end of the process, however it ends.

    Raises:
        ValueError: a process of another start is still at work there.
    """
    busy = ValueError(
        f"another run is at work in {run}, or a launcher was killed and left its processes: end those first"
    )
    with ExitStack() as held:
        if not held.enter_context(lock(run / f".lock.{team.rank}")):
            raise busy
        if team.main:
            for path in run.glob(".lock.*"):
                if path.name != ".lock.0":
                    with lock(path) as free:
                        if not free:
                            raise busy
        yield


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Try to lock a file; yield whether that worked.

    The lock ends with the process that holds it, so none is ever left over.
    """
    held = FileLock(path)
    try:
        held.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except NotImplementedError:  # how filelock before 3.21 says ENOSYS
        pass
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise
    try:
        yield True
    finally:
        held.release()
