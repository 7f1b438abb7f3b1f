"""What a report is made of: the figures of `summary.json` as types, every part of them optional.

A missing part is `None` or empty and the report leaves it out; a part of the wrong type is refused by `load`. Scores
are in decibels (PSNR, capped at 60) or in [0, 1] (SSIM, accuracies, shares); times in seconds; sizes in bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

__all__ = [
    "Adversary",
    "Attacked",
    "Attendance",
    "Cell",
    "Claim",
    "Division",
    "Guarantee",
    "Guessed",
    "Inferred",
    "Lengths",
    "Metric",
    "Noticed",
    "Paced",
    "Peer",
    "Presence",
    "Privacy",
    "Report",
    "Right",
    "Run",
    "Setup",
    "Stage",
    "Study",
    "Summary",
    "Suspected",
    "Tampering",
    "Traffic",
    "Wrapping",
]


def _words(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Words = Annotated[str, BeforeValidator(_words)]


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer at the end of a run; `refusals` is None where nobody counted."""

    index: int = 0
    name: Words = ""
    id: Words = ""
    role: Words = "peer"
    rounds: int | None = None
    accuracy: float | None = None
    ended: Words = ""
    bytes_sent: float | None = None
    bytes_received: float | None = None
    refusals: Mapping[str, int] | None = None
    cpu_seconds: float | None = None  # its worker's included, as in what follows
    peak_memory_mb: float | None = None
    round_seconds: float | None = None
    round_seconds_longest: float | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)  # what an edge device was held to


@dataclass(frozen=True, slots=True)
class Devices:
    """Which members ran as edge devices."""

    members: tuple[Words, ...] = ()


@dataclass(frozen=True, slots=True)
class Adversary:
    """Where the adversary sits: the peers it controls, by index, and whether it taps every link."""

    vantage: Words = ""
    controls: tuple[int, ...] = ()
    taps_wire: bool = False


@dataclass(frozen=True, slots=True)
class Tampering:
    """The scenario's adversary: who tampers, by number, or with none named, who sits at the vantage."""

    vantage: Words = ""
    tamper: Any = None
    peers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Wrapping:
    """The scenario's split: what is made of what crosses a cut."""

    micro_batches: int | None = None
    codec: Any = None
    gradients: Any = None
    guards: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """What the report reads of a run's scenario."""

    adversary: Tampering | None = None
    split: Wrapping | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a network that is cut: who played it at the beginning, its layers, and the shape of what leaves it,
    of one example."""

    players: tuple[Words, ...] = ()
    pieces: tuple[Words, ...] = ()
    parameters: int | None = None
    leaves: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Division:
    """Where a network is cut; `labels`: "own", "sent" or "held" at the last stage."""

    labels: Words = ""
    stages: tuple[Stage, ...] = ()

    def played(self, name: str) -> tuple[int, ...]:
        """The stages that a member plays, by number; the head is 0."""
        return tuple(number for number, stage in enumerate(self.stages) if name in stage.players)


@dataclass(frozen=True, slots=True)
class Guessed:
    """One scored guess; `truth`, `guess` and `floor` (the nearest public picture) are files in the run's folder."""

    victim: Words = ""
    round: int | None = None
    psnr: float | None = None
    psnr_shifted: float | None = None
    ssim: float | None = None
    best_floor: float | None = None
    floor_nearest: float | None = None
    floor_blind: float | None = None
    identified: bool | None = None
    truth: str = ""
    guess: str = ""
    floor: str = ""
    label: int | None = None
    label_ok: bool | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Inferred:
    """How well scores tell members from others, or who has a property: AUC, beside what knowing nothing has."""

    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    auc_floor_low: float | None = None
    auc_floor_high: float | None = None
    accuracy_balanced: float | None = None
    tpr_1: float | None = None


@dataclass(frozen=True, slots=True)
class Attacked:
    """The scores of one attack on one run; `floor_best` belongs to the best picture, `floors` are medians."""

    attack: Words = ""
    title: Words = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    vantage: Words = ""
    pictures: int | None = None
    guessed: int | None = None  # of those pictures; the others count as mid-grey
    psnr_best: float | None = None
    psnr_median: float | None = None
    ssim_best: float | None = None
    ssim_median: float | None = None
    floor_best: float | None = None
    gain_best: float | None = None
    gain_median: float | None = None
    psnr_chosen: float | None = None  # of the guess with the lowest loss of its own
    floors: Mapping[str, float] = field(default_factory=dict)
    labels_right: float | None = None
    labels_floor: float | None = None
    success: Mapping[str, float] = field(default_factory=dict)
    success_floor: Mapping[str, float] = field(default_factory=dict)
    psnr_mean: float | None = None  # over all pictures, with the ends of its 95 % interval
    psnr_low: float | None = None
    psnr_high: float | None = None
    gain_mean: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    interval_over: Words = ""
    floor_blind: float | None = None  # public pictures drawn at random and matched as the guesses were: their mean
    psnr_shifted_median: float | None = None
    identified: float | None = None
    identified_floor: float | None = None
    gallery: int | None = None
    easier: tuple[Words, ...] = ()
    infers: Words = ""  # "members", by kind of model, "property" or "model"; of a reconstruction nothing
    local: Inferred | None = None
    marginalised: Inferred | None = None
    consensus: Inferred | None = None
    told: Inferred | None = None
    accuracy_rebuilt: float | None = None  # of a model that was put together, of what it was put together from, ...
    accuracy_proxy: float | None = None
    accuracy_owner: float | None = None
    accuracy_colluders: float | None = None
    accuracy_floor: float | None = None
    error_shown: float | None = None  # relative, where the owner showed its model
    error_shown_floor: float | None = None
    error_hidden: float | None = None
    error_hidden_floor: float | None = None
    cpu_seconds: float | None = None
    guesses: tuple[Guessed, ...] = ()

    @property
    def called(self) -> str:
        """What the study calls it, or the attack's own name."""
        return self.title or self.attack


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One guarantee of differential privacy: of what, against whom, and who counted it."""

    epsilon: float | None = None
    delta: float | None = None
    protects: Words = ""
    against: Words = ""
    mechanism: Words = ""
    accountant: Words = ""
    multiplier: float | None = None
    steps: int | None = None
    rate: float | None = None
    epsilon_prv: float | None = None


@dataclass(frozen=True, slots=True)
class Privacy:
    """What a run says of differential privacy, in words and figure by figure."""

    says: Words = ""
    but: Words = ""
    guarantees: tuple[Guarantee, ...] = ()


@dataclass(frozen=True, slots=True)
class Lengths:
    """How the lengths of frames differ under one padding: means over the links, and the sum of what was sealed."""

    distinct: float | None = None
    entropy: float | None = None
    most: int | None = None
    bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Attendance:
    """One peer's time at a broker, in seconds of the run."""

    peer: Words = ""
    joined: float | None = None
    failed: tuple[float, ...] = ()
    left: float | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """What a broker sees besides frames."""

    attendance: tuple[Attendance, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suspected:
    """How right the best of an observer's suspicions is, and what such are worth about another truth."""

    got: float | None = None
    floor: float | None = None
    floor_high: float | None = None
    by: Words = ""


@dataclass(frozen=True, slots=True)
class Paced:
    """The pace of rounds as it was guessed, as it was, and how far off that is."""

    guess: float | None = None
    was: float | None = None
    off: float | None = None


@dataclass(frozen=True, slots=True)
class Right:
    """How much of what an observer of times suspects is so; None: there was nothing to tell."""

    full: Suspected | None = None
    near: Suspected | None = None
    slow: Suspected | None = None
    codec: Suspected | None = None
    round: Paced | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a relay, a broker or a wire-tapper learned from sizes and times."""

    vantage: Words = ""
    frames: int = 0
    participants: tuple[Words, ...] = ()
    links: tuple[tuple[Words, Words], ...] = ()
    pace: float | None = None
    slow: tuple[Words, ...] = ()
    body: int | None = None
    codecs: tuple[Words, ...] = ()
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    presence: Presence | None = None
    right: Right | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """`summary.json` of one run."""

    title: Words = ""
    world: Words = ""
    strategy: Words = ""
    task: Words = ""
    peers: tuple[Peer, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    adversary: Adversary | None = None
    rounds: int | None = None
    accuracy: float | None = None
    bytes_per_peer_round: float | None = None
    bytes_sent: float | None = None  # by all members
    cpu_seconds: float | None = None
    bytes_counted: Words = ""
    seconds: float | None = None
    seconds_per_round: float | None = None
    protections: Mapping[str, Any] = field(default_factory=dict)
    guards: tuple[Any, ...] = ()
    codec: Any = None
    split: Division | None = None  # None: everybody has the whole network
    epsilon: float | None = None
    privacy: Privacy | None = None  # None: an older run, which says nothing of it
    scenario: Setup = field(default_factory=Setup)
    attacks: tuple[Attacked, ...] = ()
    traffic: Traffic | None = None
    edge: Devices | None = None

    @property
    def bytes_per_round(self) -> float | None:
        """What all members said in a round: in split mode a data owner's part says little of it."""
        return None if self.bytes_sent is None else self.bytes_sent / max(self.rounds or 1, 1)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a study says about itself, and whether it came out so; None: not run."""

    says: Words = ""
    source: Words = ""
    wanted: Words = ""
    got: Words = ""
    holds: bool | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """The head of a study."""

    title: Words = ""
    source: Words = ""
    quick: bool = False
    size: Words = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a study: its place on the axes and, if it ran, its summary."""

    key: Words = ""
    axes: Mapping[str, Any] = field(default_factory=dict)
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of `metrics.jsonl`: a peer's training loss and, where it was measured, its test accuracy; `t` seconds
    after the run began, with so many bytes sent by then."""

    peer: int = 0
    round: int = 0
    loss: float | None = None
    accuracy: float | None = None
    t: float | None = None
    bytes_sent: float | None = None


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something that befell a run: a guard's `alarm` or `canary`, or that somebody was `replaced`."""

    kind: Words = ""
    peer: int = 0
    t: float | None = None
    step: int | None = None
    round: int | None = None
    why: Words = ""
    stage: int | None = None
    gone: Words = ""
    by: Words = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One run as the report shows it: `label` says where it sits on the axes, `arm` the same without the task, `kind`
    without task and seed."""

    label: str
    arm: str
    folder: Path
    summary: Summary | None
    metrics: tuple[Metric, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    noticed: tuple[Noticed, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one page shows. `unread` counts lines of metrics and events that could not be read."""

    title: str
    study: Study | None
    runs: tuple[Run, ...]
    claims: tuple[Claim, ...] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)
    unread: int = 0
