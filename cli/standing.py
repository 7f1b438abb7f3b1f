"""How a run stands: what its members have said so far, how much of it is done, and figures for people."""

from dataclasses import dataclass, field

__all__ = ["PeerStanding", "RunStanding", "clock", "percent", "size"]

_TAKING_PART = ("starting", "training", "standing by", "finished")
_TRAINING = 3.0  # what a training is worth in the bar, where an attack on it is worth 1


@dataclass(slots=True)
class PeerStanding:
    """What one member said last."""

    round: int = 0
    loss: float | None = None
    accuracy: float | None = None
    sent: int = 0
    received: int = 0
    state: str = "starting"
    alarms: int = 0  # of its guards


@dataclass
class RunStanding:
    """A run, as its members told of it."""

    title: str
    rounds: int = 0
    attacks: int = 0  # how many there will be
    peers: dict[str, PeerStanding] = field(default_factory=dict)
    attacking: dict[str, list[float]] = field(default_factory=dict)  # what is under way, and since when
    attacked: int = 0
    tenths: int = 0  # of its rounds, that were said where there is no terminal

    def least(self) -> int:
        """The round that everybody who still takes part has reached."""
        rounds = [p.round for p in self.peers.values() if p.state in _TAKING_PART]
        return min(rounds, default=0)

    @property
    def is_split(self) -> bool:
        """Whether some of its members play stages of a network that is cut."""
        return not all(name.startswith(("peer:", "server")) for name in self.peers)

    def busy(self, name: str, rounds: int) -> str:
        """What a member does after so many rounds. Who plays a stage measures nothing, so its last round is its end."""
        if name.startswith(("peer:", "server")):
            return "training"
        doing = "standing by" if name.startswith("standby:") else "training"
        return "finished" if rounds >= self.rounds else doing

    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        trained = self.least() / max(self.rounds, 1)
        return (_TRAINING * trained + min(self.attacked, self.attacks)) / (_TRAINING + self.attacks)

    @property
    def accuracy(self) -> float | None:
        """The mean over members of what they measured last; None before anybody has."""
        known = [p.accuracy for p in self.peers.values() if p.accuracy is not None]
        return sum(known) / len(known) if known else None


def percent(value: float | None) -> str:
    """A share in [0, 1] as a percentage, to a tenth."""
    return "-" if value is None else f"{value:.1%}"


def clock(seconds: float) -> str:
    """Seconds for people: 42 s, 3:07, 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def size(count: float | None) -> str:
    """Bytes for people: 1,234 B, 12.3 kB, 4.5 MB."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return ""
