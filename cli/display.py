"""Live progress: peers, rounds, accuracy, bytes, a time left; plain lines where there is no terminal."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from veilmesh.cli.standing import PeerStanding, RunStanding, clock, percent, size

__all__ = ["Display"]

_REFRESH = 0.1  # seconds between two drawings
_MOST_PEERS = 16  # shown one by one


class Display:
    """Draws what it is told by `tell`. A context manager. Draws only from the calling thread: it must stay forkable.

    Args:
        title: what is running.
        total: how many runs there are.
        done: how many of them were there already.
    """

    def __init__(self, title: str, total: int = 1, done: int = 0) -> None:
        self._console = Console()
        self._total, self._there = total, done
        self._begun = 0
        self._run = RunStanding(title)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._drawn = 0.0
        self._since = time.monotonic()
        self._paced: tuple[float, float] | None = None  # when something was done first, and how much
        self._plain = not self._console.is_terminal

    def __enter__(self) -> Self:
        if not self._plain:
            self._live.start()
            self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._plain:
            self._live.stop()

    @property
    def accuracy(self) -> float | None:
        """The mean over members of what they measured last; None before anybody has."""
        return self._run.accuracy

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, markup=False)

    def tell(self, title: str, event: Mapping[str, Any]) -> None:
        """What the run `title` reports."""
        another = title != self._run.title and self._begun > 0  # beside the run that is shown, which began last
        match event["kind"]:
            case "training":
                self._begin(title, event)
            case "attacking" | "attacked" | "note" if another:
                pass
            case "note":
                self._note(event)
            case "attacking":
                name = f"{event['attack']} from {event['vantage']}"
                self._run.attacking.setdefault(name, []).append(time.monotonic())
                self._line(f"  {name} ...")
            case "attacked":
                self._end_attack(event["attack"])
        self._draw()

    def _begin(self, title: str, event: Mapping[str, Any]) -> None:
        peers = {name: PeerStanding() for name in event["members"]}
        self._run = RunStanding(title, event["rounds"], event.get("attacks", 0), peers)
        self._begun += 1
        self._line(f"{title}: {len(peers)} members, {event['rounds']} rounds ...")

    def _end_attack(self, name: str) -> None:
        if begun := self._run.attacking.get(name):
            self._line(f"  {name}: {time.monotonic() - begun.pop(0):.0f} s")
        self._run.attacked += 1

    def _note(self, event: Mapping[str, Any]) -> None:
        peer = self._run.peers.setdefault(event["peer"], PeerStanding())
        data = event["data"]
        peer.sent, peer.received = max(peer.sent, event["sent"]), max(peer.received, event["received"])
        match event["note"]:
            case "trained":
                peer.loss, peer.state = data["loss"], "training"
                peer.round = max(peer.round, data["round"])  # a client of a star says no more of its rounds than this
            case "round":
                peer.round = data["round"] + 1
                peer.state = self._run.busy(event["peer"], peer.round)
                self._tenth()
            case "accuracy":
                peer.accuracy = data["accuracy"]
                if data["round"] >= self._run.rounds:
                    peer.round, peer.state = data["round"], "finished"
            case "ended":
                peer.state = data["how"]
                if "Ctrl-C" not in data["how"]:  # that ends all of them
                    rest = "" if self._run.is_split else "; the others go on without it"
                    self.say(f"  {event['peer']} ended: {data['how']}{rest}")
            case "silent":
                self.say(f"  {event['peer']} hears nothing from {len(data['peers'])} neighbour(s) any more")
            case "refused":
                self.say(f"  {event['peer']} dropped a frame: {data.get('detail') or data['why']}")
            case "replaced":
                self.say(
                    f"  {data['by']} plays stage {data['stage']} for {event['peer']}, since {data['gone']} is gone"
                )
            case "alarm" | "canary":
                peer.alarms += 1
                if peer.alarms == 1:  # a guard that once is suspicious mostly stays so
                    when = f"step {data['step']}" if "step" in data else f"round {data['round']}"
                    self.say(f"  {event['peer']} sounded an alarm at {when}: {data['why']}")

    def _tenth(self) -> None:
        """Where there is no terminal, a line for every tenth of a long run: a log shows that it is alive."""
        run, reached = self._run, self._run.least()
        tenth = 10 * reached // max(run.rounds, 1)
        if self._plain and run.rounds >= 50 and run.tenths < tenth < 10:
            run.tenths = tenth
            sent = size(sum(p.sent for p in run.peers.values()) / len(run.peers))
            self.say(f"  round {reached} of {run.rounds}, accuracy {percent(self.accuracy)}, {sent} sent by each")

    def _line(self, text: str) -> None:
        if self._plain:
            self.say(text)

    # --- drawing -----------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        now = time.monotonic()
        if self._plain or now - self._drawn < _REFRESH:
            return
        self._drawn = now
        self._live.update(Group(self._bar(now), self._table(), *self._attacks(now)), refresh=True)

    def _bar(self, now: float) -> RenderableType:
        """A bar, how much is done, how long it took, and how long the rest will take at that pace."""
        fresh = max(self._total - self._there, 1)
        done = max(self._begun - 1, 0) + self._run.share()
        spent = now - self._since
        left = self._left(fresh - done, done, now)
        count = (
            f"{done / fresh:.0%}" if self._total == 1 else f"run {self._there + max(self._begun, 1)} of {self._total}"
        )
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=1)
        for _ in range(3):
            row.add_column(no_wrap=True)
        row.add_row(ProgressBar(total=fresh, completed=done), count, clock(spent), left)
        return row

    def _left(self, rest: float, done: float, now: float) -> str:
        """In words, how long the rest will take at the pace since the first round was done."""
        if self._paced is None and done > 0:
            self._paced = (now, done)
        since, before = self._paced or (now, done)
        if done - before < 0.02 * (rest + done):
            return "time left: not known yet"
        return f"about {clock((now - since) * rest / (done - before))} left"

    def _table(self) -> RenderableType:
        run = self._run
        if not run.peers:
            return Text(f"{run.title}: loading ...")
        table = Table(title=Text(run.title), title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in ("peer", "round", "loss", "accuracy", "sent", "received", ""):
            table.add_column(column, justify="left" if column in ("peer", "") else "right", min_width=8)
        shown = list(run.peers.items())
        for name, p in shown if len(shown) <= _MOST_PEERS else shown[: _MOST_PEERS - 1]:
            loss = "-" if p.loss is None else f"{p.loss:.3f}"
            state = f"{p.state}, alarms: {p.alarms}" if p.alarms else p.state
            table.add_row(
                name, f"{p.round}/{run.rounds}", loss, percent(p.accuracy), size(p.sent), size(p.received), state
            )
        if len(shown) > _MOST_PEERS:
            table.add_row(f"+{len(shown) - _MOST_PEERS + 1} more", f"{run.least()}/{run.rounds}")
        return table

    def _attacks(self, now: float) -> list[RenderableType]:
        under_way = [(name, since) for name, begun in self._run.attacking.items() for since in begun]
        return [Text(f"attack: {name}, for {clock(now - since)}") for name, since in under_way]
