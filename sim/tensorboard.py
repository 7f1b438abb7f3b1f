"""A run as TensorBoard files: one line a member, curves by round.

tensorboardX writes them (the extra `tensorboard`); the TensorBoard that shows them is the user's own.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veilmesh.core import BadInput
from veilmesh.sim.follow import Followed

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

__all__ = ["write_tensorboard"]

_METRICS = ("loss", "accuracy", "test_loss", "bytes_sent", "bytes_received")
_EVENTS = {"round": ("group", "staleness")}


def write_tensorboard(folder: Path, follow: bool = False, pause: float = 1.0) -> Path:
    """Write `folder`'s curves into folder/tensorboard/<member>/; with `follow`, until the run has ended.

    Steps are rounds, wall times are seconds since the run began. What was written before is replaced. Raises BadInput:
    there is no run, it cannot be written, or the extra is missing.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise BadInput("TensorBoard files are written by tensorboardX; pip install 'veilmesh[tensorboard]'.") from None
    run, place = Followed(folder), folder / "tensorboard"
    writers: dict[str, SummaryWriter] = {}

    def writer(name: str) -> "SummaryWriter":
        if name not in writers:
            there = place / name.replace(":", "-")
            for old in there.glob("events.out.*"):
                old.unlink()
            writers[name] = SummaryWriter(str(there))
        return writers[name]

    try:
        while True:
            over = run.over  # asked first: what is written before it is then read below
            for line in run.metrics.new():
                _add(writer(run.name(line)), line, _METRICS)
            for line in run.events.new():
                _add(writer(run.name(line)), line, _EVENTS.get(str(line.get("kind")), ()))
            if over or not follow:
                return place
            time.sleep(pause)
    except OSError as error:
        raise BadInput(f"{place} cannot be written ({error.strerror}); make room there.") from None
    finally:
        for each in writers.values():
            each.close()


def _add(writer: "SummaryWriter", line: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if isinstance(line.get(name), int | float):
            writer.add_scalar(f"veilmesh/{name}", line[name], line["round"], walltime=line["t"])
