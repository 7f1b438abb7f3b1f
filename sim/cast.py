"""From a scenario to what its peers are made of: data, network, graph, kits. The same for every world.

`Cast` is what everybody who runs a scenario shares; it is prepared once, in a parent that then forks (so the data is
in memory once), or in the one process of a simulation. Nothing here trains, and torch is imported only where it is
computed with: the process of a peer whose worker is another needs none.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from veilmesh.attacks.tampers.base import TAMPERS, Insider, Tamper
from veilmesh.attacks.view import Public, Vantage
from veilmesh.core import BadInput, generator, seed_number
from veilmesh.core.registry import unknown
from veilmesh.core.zerosum import Pair
from veilmesh.crypto.codecs.base import CODECS, Mask, Vector
from veilmesh.crypto.pairwise import pair_public, pair_seed
from veilmesh.peer.machine import Machine, PeerId
from veilmesh.peer.store import load_parameters
from veilmesh.peer.transports.base import TRANSPORTS
from veilmesh.peer.worker import Executor, with_errands
from veilmesh.sim.invite import code_named
from veilmesh.sim.overlay import Overlay
from veilmesh.sim.privacy import require_privacy
from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.split.strategies.base import SPLITS
from veilmesh.swarm.aggregators.base import AGGREGATORS, Aggregator
from veilmesh.swarm.guards.base import GUARDS, Layout
from veilmesh.swarm.sealer import Sealer
from veilmesh.swarm.sharing.base import SHARINGS, Learner, Own, Serves, Serving, Setting, Sharing
from veilmesh.swarm.sharing.public_step import PublicStep
from veilmesh.swarm.strategies.base import STRATEGIES, Kit, Strategy, WorkSource
from veilmesh.swarm.strategies.gossip import GossipMachine
from veilmesh.swarm.topology import TOPOLOGIES, Topology
from veilmesh.tasks.data.base import SOURCES, Dataset
from veilmesh.tasks.models.base import MODELS
from veilmesh.tasks.partition import PARTITIONS
from veilmesh.tasks.work import Evaluate, Private, Settings, Train, batch_indices, poisson_indices

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Cast", "TrainingSource", "settings_of", "stem", "suitable"]


def stem(name: str) -> str:
    """What the files of the member called `name` begin with: not every disk takes a colon."""
    return name.replace(":", "-")


class TrainingSource:
    """Makes this project's training tasks for any machine that asks."""

    def train(self, round_: int, parameters: Vector, proximal: float = 0.0, correction: Vector | None = None) -> object:
        return Train(round_, parameters, proximal, correction)

    def evaluate(self, parameters: Vector) -> object:
        return Evaluate(parameters)


@dataclass(frozen=True)
class Cast:
    """Everything a scenario's peers share, and the makers of what they do not.

    Members are numbered in roster order: peers 0..n-1, and in a star the server last, as n.
    """

    scenario: Scenario
    dataset: Dataset
    shards: tuple[np.ndarray, ...]  # per peer: the indices of its private training examples
    rows: Mapping[int, Mapping[int, float]]  # the mixing matrix W; empty in a star
    initial: Vector
    newcomer: str | None = None  # what the one member is called that joins a mesh under way; None: it is a whole mesh

    @classmethod
    def prepare(cls, scenario: Scenario) -> "Cast":
        """Load, divide, connect. Raises BadInput for whatever in the scenario cannot be had."""
        if scenario.strategy.name in SPLITS.names():
            from veilmesh.sim.split_cast import SplitCast  # it is made of this one

            return SplitCast.prepare(scenario)
        if scenario.split:
            raise BadInput(
                f"split says where a network is cut, and strategy {scenario.strategy.name!r} cuts none; take one of "
                f"{', '.join(SPLITS.names())}, or leave split out."
            )
        for whom in (*scenario.links.slow, *(fault.whom for fault in scenario.faults)):
            if not whom.startswith("peer:"):
                raise BadInput(f"There is no {whom!r} with strategy {scenario.strategy.name!r}; write peer:N.")
        if scenario.strategy.name not in STRATEGIES.names():
            raise BadInput(unknown("strategy", scenario.strategy.name, [*STRATEGIES.names(), *SPLITS.names()]))
        strategy: Strategy = scenario.strategy.build(STRATEGIES)
        for guard in scenario.guards:
            guard.build(GUARDS)
        scenario.codec.build(CODECS)
        if scenario.model:
            scenario.model.build(MODELS)
        if scenario.world == "libp2p":
            scenario.transport.build(TRANSPORTS)
        if not strategy.centralised and scenario.adversary and scenario.adversary.vantage == "server":
            raise BadInput("adversary.vantage is 'server', but gossip has none; take 'peer:N' or a star strategy.")
        partition = scenario.partition.build(PARTITIONS)
        rows = {} if strategy.centralised else strategy.weights(_graph(scenario))
        _can_outvote(scenario, strategy, rows)
        dataset: Dataset = scenario.task.build(SOURCES).load()
        if scenario.adversary and scenario.adversary.tamper:
            serves = not scenario.adversary.tampering
            scenario.adversary.tamper.build(TAMPERS).check(scenario.strategy.name, dataset.classes, serves)
        shards = partition.split(dataset.train_y, scenario.peers, generator(scenario.seed, "partition"))
        model = scenario.model or suitable(dataset)
        scenario = scenario.model_copy(update={"model": model})
        _fit(model, dataset)
        if scenario.door.open and code_named(model.model_dump()):
            raise BadInput(
                f"Nobody can join a mesh whose model is named by import path, as {model.name!r} is: no newcomer runs "
                "what a stranger names; take another model, or leave door.open out."
            )
        if scenario.training.private:
            _apart(model, dataset, scenario.seed)
        sharing: Sharing = scenario.sharing.build(SHARINGS)
        if why := _cannot_share(scenario, sharing):
            raise BadInput(f"sharing {scenario.sharing.name!r} {why}")
        initial = sharing.initial(_setting(scenario, dataset))
        cast = cls(scenario, dataset, tuple(shards), rows, initial)
        if scenario.adversary:
            scenario.adversary.require_among(cast.names)
        require_privacy(cast)  # what is asked for and cannot be had is said before anything is run for it
        first = cast.machine(0, [PeerId(n) for n in cast.names])  # refuses options that do not go together
        for index in sorted(cast.tampering)[:1]:  # and what is to be crafted, and has no place in the network
            cast.machine(index, [PeerId(n) for n in cast.names])
        if scenario.door.open and not isinstance(first, GossipMachine):
            raise BadInput(
                f"Nobody can join a mesh of strategy {scenario.strategy.name!r} while it runs; take gossip or choco, "
                "or leave door.open out."
            )
        return cast

    @property
    def model(self) -> Choice:
        """The network: the scenario's, or the one that was found suitable."""
        assert self.scenario.model is not None
        return self.scenario.model

    @property
    def work(self) -> WorkSource:
        """What makes a machine's tasks."""
        return TrainingSource()

    @property
    def options(self) -> dict[str, Any]:
        """The strategy's, defaults included."""
        strategy: Strategy = self.scenario.strategy.build(STRATEGIES)
        return vars(strategy)

    def models(self, checkpoints: Path, names: Iterable[str]) -> list[Vector]:
        """The last models of the members of these names, of those who left one. Raises BadInput: one cannot be read."""
        paths = [checkpoints / f"{stem(name)}.safetensors" for name in names]
        return [load_parameters(path) for path in paths if path.exists()]

    @property
    def centralised(self) -> bool:
        """Whether there is a server."""
        return not self.rows

    @property
    def size(self) -> int:
        """Members, the server included."""
        return self.scenario.peers + self.centralised

    @property
    def divided(self) -> dict[str, Any] | None:
        """Where the network is cut, and who plays what; None where everybody has the whole of it."""
        return None

    @property
    def tampering(self) -> frozenset[int]:
        """Members that are active adversaries."""
        adversary = self.scenario.adversary
        if not adversary or not adversary.tamper:
            return frozenset()
        return adversary.tampering or frozenset([self.scenario.peers])  # the server, where it sits at the vantage

    @property
    def tamper(self) -> Tamper | None:
        """What they do."""
        adversary = self.scenario.adversary
        return adversary.tamper.build(TAMPERS) if adversary and adversary.tamper else None

    @cached_property
    def layout(self) -> Layout:
        """What is where in a model's parameters."""
        from veilmesh.tasks.models.build import layout

        return tuple(layout(_network(self.model, self.dataset, self.scenario.seed)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What members are called in tables: peer:0 ... and server."""
        if self.newcomer is not None:
            return (self.newcomer,)
        return (*(f"peer:{i}" for i in range(self.scenario.peers)), *(("server",) if self.centralised else ()))

    def role(self, index: int) -> str:
        """Whether member `index` is a "peer" or the "server"."""
        return "peer" if index < self.scenario.peers else "server"

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        """Who talks to whom."""
        if self.centralised:
            return [(i, self.scenario.peers) for i in range(self.scenario.peers)]
        return [(i, j) for i, row in self.rows.items() for j in row if i < j]

    def neighbours(self, index: int) -> list[int]:
        """Whom member `index` talks to."""
        return sorted({a if b == index else b for a, b in self.edges if index in (a, b)})

    def alone(self, seat: int, name: str = "peer:0") -> "Cast":
        """The cast of one who joins, and knows of no other member yet: shard `seat` is its own."""
        scenario = self.scenario.model_copy(update={"peers": 1})
        return replace(self, scenario=scenario, shards=(self.shards[seat],), rows={0: {0: 1.0}}, newcomer=name)

    def machine(self, index: int, ids: Sequence[PeerId], late: bool = False) -> Machine:
        """Member `index`'s machine, where member i is known to the others as ids[i]; `late`: it joins a run under way.

        Where others may join, they and their ids are not known beforehand, and what a member draws in private is drawn
        from the system's randomness: a newcomer is told the scenario's seed.
        """
        scenario = self.scenario
        strategy: Strategy = scenario.strategy.build(STRATEGIES)
        is_open = scenario.door.open
        overlay = Overlay(strategy, scenario.topology.build(TOPOLOGIES), scenario.seed)
        sealer = Sealer(
            [] if index in self.tampering else [g.build(GUARDS) for g in scenario.guards],
            scenario.codec.build(CODECS),
            self.initial.size,
            secrets.randbits(63) if is_open else scenario.seed,
            index,
            self._pairs(index),
            self.layout if scenario.guards and self._sharing.like_model else (),
            self.initial,
        )
        served = self._served
        hub = served if index == scenario.peers else None
        kit = Kit(
            me=ids[index],
            order=tuple(ids),
            weights={ids[j]: w for j, w in self.rows.get(index, {}).items()},
            server=ids[-1] if self.centralised else None,
            initial=hub.begun if hub else self.initial,
            rounds=scenario.rounds,
            patience=scenario.timing.round,
            evaluate_every=scenario.evaluate_every,
            sealer=sealer,
            work=self.work,
            examples=scenario.training.batch * scenario.training.local_steps,
            aggregator=scenario.aggregator.build(AGGREGATORS),
            seed=seed_number(scenario.seed, "public"),
            rows=self.rows,
            stride=scenario.training.local_steps * scenario.training.learning_rate,
            keep_every=scenario.checkpoints.every,
            private=self._private(index),
            links=partial(overlay.row, ids[index]) if is_open else None,
            late=late,
            proxy=(lambda x, to, round_: hub.proxy(x, ids.index(to), round_)) if hub else None,
            proxied=served is not None and hub is None,
            secret=secrets.token_bytes(32) if scenario.world == "libp2p" else b"",
        )
        machine = strategy.machine(kit)
        if self.tamper is None or index not in self.tampering:
            return machine
        return self.tamper.wrap(machine, *self._inside(index, ids, kit))

    @property
    def serves(self) -> bool:
        """Whether its server says something else than its model."""
        return isinstance(self._sharing, Serves)

    @property
    def withheld(self) -> Mask | None:
        """Of a server's model, what no client is ever told (d,); None where all is said, or there is no server's."""
        return self._served.hidden if self._served else None

    @cached_property
    def _sharing(self) -> Sharing:
        """What makes the vectors that members exchange."""
        sharing: Sharing = self.scenario.sharing.build(SHARINGS)
        return sharing

    @cached_property
    def _served(self) -> Serving | None:
        """The server's side of what is shared, where it says something else than its model."""
        if not isinstance(self._sharing, Serves):
            return None
        return self._sharing.served(_setting(self.scenario, self.dataset), self._private(self.scenario.peers))

    def _inside(self, index: int, ids: Sequence[PeerId], kit: Kit) -> tuple[Insider, np.random.Generator]:
        malicious = frozenset(ids[i] for i in self.tampering)
        rows = {ids[i]: {ids[j]: w for j, w in row.items()} for i, row in self.rows.items()}
        return Insider(kit, malicious, rows, self.public(ids)), generator(self.scenario.seed, "tamper", index)

    def learner(self, index: int) -> Learner:
        """What runs member `index`'s work. The server has no data of its own and only evaluates."""
        scenario, data = self.scenario, self.dataset
        mine = self.shards[index] if index < scenario.peers else np.arange(1)
        x, y = data.train_x[mine], data.train_y[mine]
        personal = scenario.evaluate_on == "own" and index < scenario.peers
        counts = _importance(y, data) if personal else None
        if self.tamper is not None and index in self.tampering:
            x, y = self.tamper.data(x, y, data.classes, generator(scenario.seed, "tamper-data", index))
        own = Own(
            index=index,
            x=x,
            y=y,
            test_x=data.test_x,
            test_y=data.test_y,
            importance=counts,
            private=self._private(index),
            secret=secrets.randbits(63) if scenario.door.open else None,  # who joins is told the scenario's seed
            pairs=self._pairs(index),
        )
        return self._sharing.learner(_setting(scenario, data), own)

    def _private(self, index: int) -> int:
        """What member `index` draws secrets from; in the laboratory it follows from the scenario's seed."""
        is_open = self.scenario.door.open
        return secrets.randbits(63) if is_open else seed_number(self.scenario.seed, "private", index)

    def _pairs(self, index: int) -> tuple[Pair, ...]:
        """What member `index` has in common with each neighbour, where noise is to cancel: agreed from its own key and
        the neighbour's public one. In the laboratory keys follow from the scenario's seed."""
        if not self.scenario.pairs_noise or index >= self.scenario.peers:
            return ()
        mine = self._pair_key(index)
        return tuple(
            Pair(pair_seed(mine, self._pair_publics[other], "noise"), 1 if index < other else -1)
            for other in self.neighbours(index)
        )

    def _pair_key(self, index: int) -> bytes:
        return generator(seed_number(self.scenario.seed, "private", index), "pair-key").bytes(32)

    @cached_property
    def _pair_publics(self) -> list[bytes]:
        return [pair_public(self._pair_key(i)) for i in range(self.scenario.peers)]

    def executor(self, index: int) -> Executor:
        """What does member `index`'s work: its trainer, and errands, which need none."""
        return with_errands(self.learner(index).run)

    def drawn(self, index: int, round_: int) -> np.ndarray:
        """The truth: indices, in the data set, of the training examples peer `index` used in `round_`, step by step."""
        scenario, mine = self.scenario, self.shards[index]
        settings = scenario.training
        steps = range(settings.local_steps)
        if settings.private and scenario.door.open:
            raise BadInput("Who joins a private training draws its batches in secret: there is no truth to score by.")
        if settings.private:
            n = len(mine)
            drawn = [poisson_indices(scenario.seed, index, round_, s, n, settings.batch) for s in steps]
            return mine[np.concatenate(drawn)]
        drawn = [
            batch_indices(scenario.seed, index, round_, s, len(mine), settings.batch, settings.local_steps)
            for s in steps
        ]
        return mine[np.concatenate(drawn)]

    def chosen(self, index: int, round_: int) -> np.ndarray:
        """The truth: places of the public pictures that peer `index` chose in `round_`, step by step. Raises BadInput
        where nobody chose any, or from secrets that are gone."""
        scenario, sharing = self.scenario, self._sharing
        if not isinstance(sharing, PublicStep) or scenario.door.open:
            raise BadInput("Which public pictures were chosen is known of sharing 'public-step' in a closed mesh only.")
        return sharing.drawn(_setting(scenario, self.dataset), self._private(index), index, round_)

    def vantage(self, text: str, ids: Sequence[PeerId]) -> Vantage:
        """The vantage written as `peer:3`, `server`, `wire`, `broker`, `relay`, `relay:3`, or several of them, who pool
        what they see, as `peer:0+peer:3`. Raises BadInput if there is no such place."""
        places, relays = text.split("+"), self._relays(ids)
        for place in places:
            if place not in (*self.names, "wire", "broker", *relays):
                raise BadInput(
                    f"There is no {place!r} in this run; known: {', '.join(self.names)}, wire, broker, relay and "
                    "relay:N."
                )
        controls = frozenset(ids[self.names.index(place)] for place in places if place in self.names)
        carries = frozenset(link for place in places for link in relays.get(place, ()))
        if "broker" in places:  # between whom frames pass, it finds out: those without a link may say dummies
            carries |= {frozenset(pair) for pair in combinations(ids, 2)}
        return Vantage(controls, taps_wire="wire" in places, carries=carries, broker="broker" in places)

    def _relays(self, ids: Sequence[PeerId]) -> dict[str, frozenset[frozenset[PeerId]]]:
        """The links that pass through a relay, by what it is called as a vantage."""
        cover = self.scenario.envelope.cover
        edges = list(combinations(range(self.size), 2)) if cover and cover.everybody else self.edges
        links = {edge: frozenset(ids[end] for end in edge) for edge in edges}
        through = {f"relay:{i}": [links[e] for e in edges if i in e] for i in range(self.scenario.peers)}
        return {"relay": frozenset(links.values())} | {name: frozenset(of) for name, of in through.items()}

    def blind(self, ids: Sequence[PeerId], place: Vantage) -> frozenset[PeerId]:
        """Members at `place` that do not know the labels of their own examples: nobody."""
        return frozenset()

    def held(self, ids: Sequence[PeerId], place: Vantage) -> dict[PeerId, np.ndarray]:
        """Labels of others that members at `place` hold as parties to the protocol."""
        return {}

    def public(self, ids: Sequence[PeerId]) -> Public:
        """What everybody who takes part is told."""
        scenario = self.scenario
        return Public(
            task=scenario.task.name,
            shape=self.dataset.shape,
            classes=self.dataset.classes,
            model=self.model.model_dump(),
            initial=self.initial,
            learning_rate=scenario.training.learning_rate,
            optimizer=scenario.training.optimizer,
            batch=scenario.training.batch,
            local_steps=scenario.training.local_steps,
            strategy=scenario.strategy.name,
            options=self.options,
            sharing=scenario.sharing.model_dump(),
            codec=scenario.codec.model_dump(),
            private=scenario.training.private.model_dump() if scenario.training.private else {},
            aggregator=scenario.aggregator.name,
            guards=tuple(g.model_dump() for g in scenario.guards),
            weights={ids[i]: {ids[j]: w for j, w in row.items()} for i, row in self.rows.items()},
            peers=tuple(ids),
            server=ids[-1] if self.centralised else None,
            pictures=self.dataset.public_x,
            picture_labels=self.dataset.public_y,
            draws=seed_number(scenario.seed, "public"),
        )

    def decoys(self, index: int) -> tuple[int, ...]:
        """Who is no neighbour of member `index`, and is said as much to as if it were."""
        cover = self.scenario.envelope.cover
        near = {index, *self.neighbours(index)}
        return tuple(i for i in range(self.size) if i not in near) if cover and cover.everybody else ()

    def keeps(self, index: int) -> bool:
        """Whether member `index`'s tap is to be written."""
        return self.scenario.keeps(self.names[index])


def _network(model: Choice, data: Dataset, seed: int) -> "nn.Module":
    from veilmesh.tasks.models.build import build_model

    return build_model(model.name, model.options, data.shape, data.classes, seed)


def _fit(model: Choice, data: Dataset) -> None:
    from veilmesh.tasks.models.build import check_fit

    check_fit(model.name, data.per_pixel)


def _apart(model: Choice, data: Dataset, seed: int) -> None:
    from veilmesh.tasks.private import require_apart

    require_apart(model.name, _network(model, data, seed), data.shape)


def _importance(own: np.ndarray, data: Dataset) -> np.ndarray:
    from veilmesh.tasks.scoring import importance

    return importance(own, data.test_y, data.classes)


def _setting(scenario: Scenario, data: Dataset) -> Setting:
    assert scenario.model is not None
    return Setting(
        model=scenario.model.model_dump(),
        shape=data.shape,
        classes=data.classes,
        settings=settings_of(scenario),
        seed=scenario.seed,
        peers=scenario.peers,
        public_x=data.public_x,
        public_y=data.public_y,
    )


def settings_of(scenario: Scenario) -> Settings:
    options, dp = scenario.training.model_dump(exclude={"private"}), scenario.training.private
    return Settings(**options, private=Private(dp.clip, dp.noise, dp.pair) if dp else None)


_SERVED = ("fedavg", "fedprox", "fedsgd")
"""Stars whose server says its model, and nothing that would follow from it besides."""


def _cannot_share(scenario: Scenario, sharing: Sharing) -> str | None:
    """Why a run of this scenario cannot share what `sharing` makes, if it cannot."""
    if scenario.sharing.name == "model":
        return None
    if sharing.remembers and scenario.checkpoints.every:
        return "keeps a part of each peer at home, which no checkpoint has; leave out checkpoints."
    if isinstance(sharing, Serves) and scenario.strategy.name not in _SERVED:
        return f"is what a server shows its clients; set strategy to {' or '.join(_SERVED)}."
    if scenario.training.private:
        return "trains in its own way, which no accountant knows; leave out training.private."
    if not sharing.like_model and any(guard.name == "canary" for guard in scenario.guards):
        return "shares no model whose layers guard 'canary' could look at; leave the guard out."
    return None


def suitable(dataset: Dataset) -> Choice:
    """A network for a task whose scenario names none."""
    if dataset.per_pixel:
        return Choice(name="segnet")
    return Choice(name="mlp" if max(dataset.shape[1:]) <= 16 else "convnet")


def _can_outvote(scenario: Scenario, strategy: Strategy, rows: Mapping[int, Mapping[int, float]]) -> None:
    """Raises BadInput where a peer would not see enough models for what the aggregator promises."""
    aggregator: Aggregator = scenario.aggregator.build(AGGREGATORS)
    if not strategy.aggregates and scenario.aggregator.name != "mean":
        raise BadInput(
            f"strategy {scenario.strategy.name!r} averages in its own way, so aggregator {scenario.aggregator.name!r} "
            "would do nothing; leave it out, or take gossip, choco or a star."
        )
    shown = [(len(row), f"peer:{i}") for i, row in rows.items()] or [(scenario.peers, "the server")]
    number, who = min(shown)
    if number < aggregator.fewest:
        raise BadInput(
            f"aggregator {scenario.aggregator.name!r} with these options has to be shown {aggregator.fewest} models, "
            f"and {who} is shown {number}{', its own included' if rows else ''}; lower f, or connect more peers."
        )


def _graph(scenario: Scenario) -> "nx.Graph[int]":
    if scenario.peers == 1 and (scenario.door.open or scenario.strategy.name == "alone"):  # others will come, or never
        return nx.complete_graph(1)
    if scenario.peers < 2:
        raise BadInput("Gossip needs at least 2 peers; raise peers.")
    topology: Topology = scenario.topology.build(TOPOLOGIES)
    return topology.graph(scenario.peers, scenario.seed)
