"""A scenario: one run, as data. Read from TOML, checked whole before anything starts.

Named things (`task`, `model`, `codec`, ...) are a name, or a table with a `name` and that thing's options; both are
checked against the registries, so an unknown name or option is refused here with the list of the known ones.
"""

import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from veilmesh.core import BadInput, Registry, RemoteError
from veilmesh.core.registry import first_complaint, unknown
from veilmesh.crypto.identity import PeerId, public_key
from veilmesh.crypto.padding import Padding
from veilmesh.peer.cover import LEAST_SLOT, Cover
from veilmesh.sim.edge import Edge
from veilmesh.sim.faults import Churn, Fault, Links, misplaced
from veilmesh.sim.feet import Feet, misplaced_feet
from veilmesh.split.strategies.base import SPLITS

__all__ = ["Adversary", "Choice", "Scenario", "Training", "override", "read_toml"]


class Choice(BaseModel):
    """A registered thing by name, with its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})

    def build(self, registry: "Registry[Any]") -> Any:
        """The thing itself. Raises BadInput."""
        return registry.build(self.name, self.options)


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _several(value: object) -> object:
    """One name or table where a list of them is meant: `guards = "noise"`."""
    return [value] if isinstance(value, str | Mapping) else value


Named = Annotated[Choice, BeforeValidator(_named)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PrivateTraining(_Strict):
    """Training with differential privacy (DP-SGD): the unit is one example of one peer, whom everybody may watch.

    With it, batches are Poisson samples of `training.batch` examples on average. The report says the run's epsilon.
    """

    clip: float = Field(default=1.0, gt=0, description="the L2 norm that an example's gradient may have")
    noise: float = Field(default=1.0, gt=0, description="standard deviation of the noise on their sum, over clip")
    delta: float = Field(default=1e-5, gt=0, lt=1, description="the chance that epsilon does not hold")
    pair: float = Field(default=0.0, ge=0, description="of noise that each neighbour takes away again, over clip")
    colluders: int = Field(default=1, ge=0, description="peers that pool what they know, for the epsilon of pair")


class Training(_Strict):
    """How a peer trains on its own data between two exchanges."""

    batch: int = Field(default=16, ge=1)
    local_steps: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    optimizer: Literal["sgd", "adam"] = "sgd"
    private: PrivateTraining | None = None


class Adversary(_Strict):
    """Who is malicious: where it listens, and what it does.

    `peer:3` and `server` take part, and in split mode `tail`, `body`, `middle:1` and `standby:1`; `wire` taps every
    link; `relay` is one that every frame passes through, `relay:3` the one that peer 3 is reached through. `broker` is
    the MQTT broker, which besides sees who is there, dummies, chunks and acknowledgements; in the virtual and memory
    worlds, one that everybody would use. Several pool what they see: `peer:1+tail`.
    """

    vantage: str
    tamper: Named | None = None  # what it does besides taking part
    peers: tuple[Annotated[int, Field(ge=0)], ...] = ()  # that tamper; none named: the one at the vantage

    @field_validator("vantage")
    @classmethod
    def _is_a_place(cls, text: str) -> str:
        one = r"(peer|middle|standby):[0-9]{1,6}|server|body|tail|wire|broker|relay(:[0-9]{1,6})?"
        if not re.fullmatch(rf"({one})(\+({one}))*", text):
            raise ValueError(
                f"{text!r} is no place to sit; write peer:N (peers count from 0), server, wire, broker, relay or "
                "relay:N, or what a member of split mode is called: tail, body, middle:N"
            )
        return text

    @property
    def tampering(self) -> frozenset[int]:
        """The peers that tamper, by number. Where the server does, `Cast.tampering` has its number."""
        return frozenset(self.peers or self.seated) if self.tamper else frozenset()

    @property
    def places(self) -> tuple[str, ...]:
        """The one place, or those whose adversaries pool what they see."""
        return tuple(self.vantage.split("+"))

    @property
    def seated(self) -> tuple[int, ...]:
        """The peers at the vantage, by number."""
        return tuple(int(place.removeprefix("peer:")) for place in self.places if place.startswith("peer:"))

    def require_among(self, members: Collection[str]) -> None:
        """Raises BadInput where the vantage is none of `members`, and no place to tap either."""
        for place in self.places:
            if place not in members and place not in ("wire", "broker") and not place.startswith("relay"):
                known = ", ".join(members)
                raise BadInput(f"adversary.vantage: there is no {place!r} in this run; known: {known}, wire and relay.")


class Transcript(_Strict):
    """What the run's tap keeps: nothing, what controlled peers received, or everything."""

    keep: Literal["none", "controlled", "all"] = "controlled"
    max_bytes: int = Field(default=64 << 20, ge=0, description="per peer; later frames are not kept")


class CoverTraffic(_Strict):
    """Frames of one length at a fixed pace to every neighbour, whether there is something to say or not."""

    pace: float = Field(gt=0, le=60, description="seconds between two frames on a link")
    bytes: int = Field(default=16 << 10, ge=LEAST_SLOT, le=1 << 20, description="of a frame before it is sealed")
    everybody: bool = Field(default=False, description="as much to members that are no neighbours: hides the graph")

    @property
    def cover(self) -> Cover:
        """As a node takes it."""
        return Cover(self.pace, self.bytes)


class Envelope(_Strict):
    """How messages are sealed, as far as that can be chosen; they always are."""

    padding: Padding = Field(default="none", description="longer bodies, of fewer lengths: padme or power-of-two")
    cover: CoverTraffic | None = Field(default=None, description="None: a frame leaves when there is something to say")


class Timing(_Strict):
    """Deadlines, in seconds."""

    start: float = Field(default=30.0, gt=0, description="for every neighbour to answer at the beginning")
    round: float = Field(default=20.0, gt=0, description="for what is missing in a round")
    silence: float = Field(default=10.0, gt=0, description="before a silent neighbour is taken for dead")
    grace: float = Field(default=1.0, ge=0, description="of silence, once its connection broke")
    run: float = Field(default=3600.0, gt=0, description="for the whole run")


class Checkpoints(_Strict):
    """What members write down to go on from when the run is broken off: `veilmesh up --resume`.

    None unless they are asked for: they leave models of single rounds, and the members' identity keys, on disk.
    """

    every: int = Field(default=0, ge=0, description="rounds between two; 0: none")
    keep: int | None = Field(default=None, ge=1, description="the last so many; None: as many as a mesh like it needs")


class Door(_Strict):
    """Whether others may come in while the run is under way: `veilmesh invite`, `veilmesh join`.

    Whoever has the invite's secret may, or, where a list is given, those on it.
    """

    open: bool = False
    allow: tuple[str, ...] = Field(default=(), description="peer ids; with them, an invite holds no secret")

    @model_validator(mode="after")
    def _is_a_list_of_peers(self) -> Self:
        for peer in self.allow:
            try:
                public_key(PeerId(peer))
            except RemoteError:
                raise ValueError(f"{peer!r} is no peer id; ask for what `veilmesh identity` prints") from None
        if self.allow and not self.open:
            raise ValueError("door.allow says who may come in; set door.open = true too")
        return self


class Split(_Strict):
    """Split mode: where the network is cut, and what is made of what crosses a cut."""

    cuts: tuple[int | str, ...] = Field(default=(), description="after so many pieces, or after the piece of that name")
    micro_batches: int = Field(default=1, ge=1, le=1024, description="that a step's batch is divided into")
    in_flight: int = Field(default=0, ge=0, description="micro-batches on their way at a time; 0: all")
    codec: Named = Field(default=Choice(name="dense"), description="of activations")
    gradients: Named = Field(default=Choice(name="dense"), description="codec of gradients")
    guards: Annotated[tuple[Named, ...], BeforeValidator(_several)] = ()


class Scenario(_Strict):
    """One run."""

    title: str = ""
    seed: int = Field(default=0, ge=0)
    world: Literal["libp2p", "memory", "virtual"] = "libp2p"
    peers: int = Field(default=5, ge=1, le=100_000)
    rounds: int = Field(default=100, ge=1, le=1_000_000)
    evaluate_every: int = Field(default=10, ge=1)
    evaluate_on: Literal["all", "own"] = Field(
        default="all", description="the test pictures: all alike, or in each peer's own mix of classes"
    )
    task: Named = Choice(name="digits")
    model: Named | None = None  # None: one that suits the task
    partition: Named = Choice(name="iid")
    training: Training = Training()
    strategy: Named = Choice(name="gossip")
    topology: Named = Choice(name="complete")
    sharing: Named = Choice(name="model")
    codec: Named = Choice(name="dense")
    aggregator: Named = Choice(name="mean")
    guards: Annotated[tuple[Named, ...], BeforeValidator(_several)] = ()
    split: Split | None = None  # of a strategy of split mode; None: as it comes
    transport: Named = Choice(name="libp2p")
    feet: tuple[Feet, ...] = ()  # who stands on another one
    adversary: Adversary | None = None
    transcript: Transcript = Transcript()
    envelope: Envelope = Envelope()
    timing: Timing = Timing()
    checkpoints: Checkpoints = Checkpoints()
    links: Links = Links()
    edge: Edge | None = None
    faults: tuple[Fault, ...] = ()
    door: Door = Door()
    churn: Churn | None = None

    @model_validator(mode="before")
    @classmethod
    def _names_where_only_options_are_given(cls, data: Any) -> Any:
        """`transport.port = 4001` means the default transport, with that port; and where nobody says how many peers
        there are, a protocol of split mode has as many data owners as it needs."""
        if not isinstance(data, Mapping):
            return data
        if "peers" not in data and (owners := _owners(data.get("strategy"))):
            data = {**data, "peers": owners}
        defaults = {name: field.default.name for name, field in cls.model_fields.items() if _is_choice(field.default)}
        named = {
            name: {"name": default, **data[name]}
            for name, default in defaults.items()
            if isinstance(data.get(name), Mapping) and "name" not in data[name]
        }
        return {**data, **named}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.strategy.name == "fedsgd" and self.training.local_steps != 1:
            raise ValueError("fedsgd takes exactly one local step; set training.local_steps = 1, or take fedavg")
        if self.training.optimizer == "adam" and self.training.momentum:
            raise ValueError("adam has its own momentum; leave training.momentum out, or set training.optimizer = sgd")
        if self.strategy.name == "scaffold" and (self.training.optimizer != "sgd" or self.training.momentum):
            raise ValueError(
                "scaffold reads gradients off the way that plain sgd goes; set training.optimizer = sgd and "
                "training.momentum = 0, or take fedavg or fedprox"
            )
        if why := self._not_private():
            raise ValueError(why)
        for index in self.adversary.seated if self.adversary else ():
            if index >= self.peers:
                raise ValueError(f"there is no peer:{index} among {self.peers} peers (they count from 0)")
        if self.adversary:
            self._tampers_somewhere(self.adversary)
        if why := misplaced(self.links, self.faults, self.peers, self.world):
            raise ValueError(why)
        if self.edge and (
            why := self.edge.misplaced(self.peers, self.world, self.transport.model_dump(), self.door.open)
        ):
            raise ValueError(why)
        if why := misplaced_feet(self):
            raise ValueError(why)
        if self.door.open and self.world != "libp2p":
            raise ValueError(f"nobody can come in from outside to the {self.world} world; set world to libp2p")
        if self.door.open and self.checkpoints.every:
            raise ValueError("a mesh that others join has no common round to go on from; leave out checkpoints.every")
        if self.door.open and self.topology.name not in ("complete", "ring"):
            raise ValueError(
                f"a {self.topology.name} graph would be another one whenever somebody comes or goes; where others may "
                "join, set topology to complete or ring"
            )
        if self.envelope.cover and self.door.open:
            raise ValueError("cover traffic is between members that know each other at the start; leave out door.open")
        if self.envelope.cover and self.envelope.cover.pace > self.timing.silence / 4:
            raise ValueError("envelope.cover.pace leaves signs of life too late; at most a fourth of timing.silence")
        if self.churn and not self.door.open:
            raise ValueError("churn is members coming and going; set door.open = true too")
        return self

    @property
    def pairs_noise(self) -> bool:
        """Whether neighbours add noise that is to cancel."""
        private = self.training.private
        return bool(private and private.pair) or any(guard.name == "correlated-noise" for guard in self.guards)

    def keeps(self, name: str) -> bool:
        """Whether the run's tap is kept of everything that is seen from `name`: a member, several (`peer:1+tail`), or
        `wire` for all of them."""
        if self.transcript.keep != "controlled":
            return self.transcript.keep == "all"
        seats = self.adversary.places if self.adversary else ()
        taps = any(seat in ("wire", "broker") or seat.startswith("relay") for seat in seats)
        return taps or set(name.split("+")) <= set(seats)

    @property
    def keeps_passing(self) -> bool:
        """Whether every frame is kept as it passes: for a broker, and where dummies pass, for whoever sees frames."""
        places = self.adversary.places if self.adversary else ()
        if self.transcript.keep == "none":
            return False
        return "broker" in places or bool(self.envelope.cover and (self.keeps("wire") or self.transcript.keep == "all"))

    def _not_private(self) -> str | None:
        """Why the differential privacy that is asked for cannot be had, if it cannot."""
        private, guards = self.training.private, {guard.name for guard in self.guards}
        accounted = bool(private) or bool(guards & {"private-update", "correlated-noise"})
        if accounted and self.checkpoints.every:
            return "a run that is taken up again says some rounds twice, which no epsilon counts; leave out checkpoints"
        if not self.pairs_noise:
            return None
        paired = "training.private.pair" if private and private.pair else "guard correlated-noise"
        if self.strategy.name != "gossip" or self.door.open:
            return f"{paired} is noise that fixed neighbours share; set strategy to gossip, and door.open to false"
        if private and private.pair and self.training.optimizer == "adam":
            return "noise that neighbours share does not cancel behind adam, which scales it; take sgd, or pair = 0"
        return None

    def _tampers_somewhere(self, adversary: Adversary) -> None:
        behind = adversary.vantage.removeprefix("relay:")
        if behind.isdigit() and int(behind) >= self.peers:
            raise ValueError(f"there is no peer {behind} behind a relay, among {self.peers} (they count from 0)")
        if "broker" in adversary.places and self.world == "libp2p" and (self.transport.name != "mqtt" or self.feet):
            raise ValueError(
                "a broker sees all of a mesh only where everybody is on MQTT; set transport.name = mqtt and leave out "
                "feet, or take relay or wire"
            )
        if adversary.peers and not adversary.tamper:
            raise ValueError("adversary.peers are those that tamper; set adversary.tamper too, or leave them out")
        stages = any(place.startswith(("tail", "body", "middle", "standby")) for place in adversary.places)
        if adversary.tamper and not adversary.tampering and adversary.vantage != "server" and not stages:
            raise ValueError(f"{adversary.vantage!r} is no peer, and peers tamper; name them in adversary.peers")
        if adversary.peers and max(adversary.peers) >= self.peers:
            raise ValueError(f"there is no peer:{max(adversary.peers)} to tamper among {self.peers} (counted from 0)")

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str = "scenario") -> Self:
        """The scenario in `data`. Raises BadInput: one sentence that says what is wrong and what is known."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise BadInput(f"{where}: {_sentence(cls, error)}") from None


def _owners(strategy: object) -> int | None:
    """How many data owners a strategy of split mode has; None where that is for the scenario to say."""
    name = strategy.get("name") if isinstance(strategy, Mapping) else strategy
    return SPLITS.get(name).owners if isinstance(name, str) and name in SPLITS.names() else None


def _is_choice(value: object) -> bool:
    return isinstance(value, Choice)


def override(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with dotted `changes` applied ("model.width": 8). A named thing may be replaced by a bare name.

    Names are changed before options, in whatever order they come: another thing has other options. Raises BadInput
    where a change reaches inside something that has no fields.
    """
    result: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in data.items()}
    for path, value in sorted(changes.items(), key=lambda change: _depth(change[0])):
        *way, last = path.split(".")
        place = result
        for step in way:
            place[step] = place = _opened(place.get(step, {}), path)
        if last == "name":
            place.clear()  # another thing has other options
        place[last] = dict(value) if isinstance(value, Mapping) else value
    return result


def _depth(path: str) -> int:
    """How deep a change reaches; a name counts as the whole thing it names."""
    return path.removesuffix(".name").count(".")


def _opened(value: object, path: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise BadInput(f"{path!r} cannot be set: what it should be in is {value!r}, which has no fields.")
    return dict(value)


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises BadInput if it is missing or broken."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"There is no file {path}; check the path.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path} cannot be read as TOML: {error}.") from None


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "extra_forbidden":
        *way, name = (str(part) for part in first["loc"])
        for step in (part for part in way if not part.isdigit()):  # a place in a list has no fields of its own
            annotation = model.model_fields[step].annotation
            args = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
            model = args[0] if args else annotation  # type: ignore[assignment]  # a field of ours is a model here
        return unknown(f"field of {'.'.join(way) or 'a scenario'}", name, list(model.model_fields))
    if first["type"] == "missing":
        return f"{'.'.join(str(part) for part in first['loc'])} is missing; give it."
    return f"{first_complaint(error)}."
