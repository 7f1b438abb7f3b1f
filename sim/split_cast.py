"""The cast of a run in split mode: who plays which stage, and what each of them has.

It is a cast like any other to whatever runs it. A data owner has its own examples; whoever holds labels has those, and
nobody else has anything.
"""

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from veilmesh.attacks.hijacks.base import HIJACKS, Hijack, Knows
from veilmesh.attacks.view import Public, Vantage
from veilmesh.core import BadInput, generator, seed_number
from veilmesh.crypto.codecs.base import CODECS, Vector
from veilmesh.peer.machine import Machine, PeerId
from veilmesh.peer.store import load_parameters
from veilmesh.peer.transports.base import TRANSPORTS
from veilmesh.peer.worker import Executor, with_errands
from veilmesh.sim.cast import Cast, settings_of, stem, suitable
from veilmesh.sim.scenario import Choice, Scenario, Split
from veilmesh.split.cut import around_linear, divide, pieces, places, shapes
from veilmesh.split.encrypted import LayerOwner, LayerUser, require_linear
from veilmesh.split.encrypted_answers import Answerer, Asker, before_answers, require_few
from veilmesh.split.guards.base import SPLIT_GUARDS, About
from veilmesh.split.stage import CHUNK, Examples, StageOptions, Stages
from veilmesh.split.strategies.base import SPLITS, HeadEvaluate, HeadTrain, Plan, SplitKit, SplitStrategy
from veilmesh.swarm.guards.base import Layout
from veilmesh.swarm.strategies.base import STRATEGIES, Strategy, WorkSource
from veilmesh.swarm.topology import TOPOLOGIES, Topology
from veilmesh.tasks.data.base import SOURCES, Dataset
from veilmesh.tasks.models.base import MODELS
from veilmesh.tasks.models.build import build_model, check_fit, initial_vector, layout
from veilmesh.tasks.partition import PARTITIONS
from veilmesh.tasks.training import Trainer

__all__ = ["SplitCast"]


@dataclass(frozen=True)
class SplitCast(Cast):
    """As `Cast`; `rows` are the heads' mixing matrix where heads are averaged, and empty otherwise."""

    plan: Plan | None = None
    at: tuple[int, ...] = ()  # where the network is cut: after so many pieces each

    @classmethod
    def prepare(cls, scenario: Scenario) -> "SplitCast":
        """Load, divide, cut. Raises BadInput for whatever in the scenario cannot be had."""
        strategy: SplitStrategy = scenario.strategy.build(SPLITS)
        plan = strategy.plan(scenario.peers)
        _refuse(scenario, strategy, plan)
        split = scenario.split or Split()
        for choice, registry in ((split.codec, CODECS), (split.gradients, CODECS), (scenario.codec, CODECS)):
            choice.build(registry)
        for guard in split.guards:
            guard.build(SPLIT_GUARDS)
        if scenario.world == "libp2p":
            scenario.transport.build(TRANSPORTS)
        partition = scenario.partition.build(PARTITIONS)
        dataset: Dataset = scenario.task.build(SOURCES).load()
        if dataset.per_pixel and plan.labels != "own":
            raise BadInput("Labels of pixels stay with the data owner; take u-shaped, or chain with labels own.")
        model = scenario.model or suitable(dataset)
        check_fit(model.name, dataset.per_pixel)
        shards = partition.split(dataset.train_y, scenario.peers, generator(scenario.seed, "partition"))
        smallest = min(scenario.training.batch, *(len(shard) for shard in shards))
        if split.micro_batches > smallest:
            raise BadInput(f"A batch of {smallest} cannot be divided into {split.micro_batches}; lower micro_batches.")
        initial = initial_vector(model.name, model.options, dataset.shape, dataset.classes, scenario.seed)
        network = build_model(model.name, model.options, dataset.shape, dataset.classes, scenario.seed)
        at = _cuts(network, split, plan)
        rows = _rows(scenario, strategy)
        scenario = scenario.model_copy(update={"model": model, "split": split})
        cast = cls(scenario, dataset, tuple(shards), rows, initial, plan=plan, at=at)
        if not cast.sizes[0] and plan.takes_turns | strategy.averages:
            raise BadInput("The head has no parameters to average or hand on; cut after the first layer that has some.")
        if plan.answers:
            require_few(prod(cast.shapes[1]), dataset)
        cast.require_hijackers()
        cast.start_guards()  # what has no meaning on this task is refused here, not in a worker
        cast.machine(0, [PeerId(n) for n in cast.names])
        return cast

    # --- who is who --------------------------------------------------------------------------------------------

    @property
    def _plan(self) -> Plan:
        assert self.plan is not None
        return self.plan

    @property
    def _split(self) -> Split:
        assert self.scenario.split is not None
        return self.scenario.split

    @property
    def centralised(self) -> bool:
        """Nobody is the server of a star."""
        return False

    @property
    def size(self) -> int:
        return len(self._plan.seats)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(seat.name for seat in self._plan.seats)

    def role(self, index: int) -> str:
        """Whether member `index` is a "peer", which has data, plays a "stage", or is a "standby"."""
        return self._plan.seats[index].role

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        heads = [(i, j) for i, row in self.rows.items() for j in row if i < j]
        return sorted({*self._plan.edges, *heads})

    @property
    def options(self) -> dict[str, Any]:
        return asdict(self.scenario.strategy.build(SPLITS))

    @property
    def divided(self) -> dict[str, Any]:
        """For the record: of every stage its players at the beginning, its pieces, how many parameters it has, and the
        shape of what leaves it of one example; and where the last stage has labels from."""
        every = [(n if not n.isdigit() else type(p).__name__.lstrip("_")) for n, p in pieces(self._network())]
        ends = [0, *self.at, len(every)]
        stages = [
            {
                "players": list(dict.fromkeys(self.names[route[number]] for route in self._plan.route)),
                "pieces": every[ends[number] : ends[number + 1]],
                "parameters": self.sizes[number],
                "leaves": list(self.shapes[number + 1]),
            }
            for number in range(self._plan.stages)
        ]
        return {"labels": self._plan.labels, "stages": stages}

    # --- what they are made of ---------------------------------------------------------------------------------

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """What enters each stage, of one example, and what leaves the last."""
        return shapes(divide(self._network(), self.at), self.dataset.shape)

    @cached_property
    def sizes(self) -> list[int]:
        """How many parameters each stage has."""
        return [sum(p.numel() for p in stage.parameters()) for stage in divide(self._network(), self.at)]

    def _network(self) -> Any:
        model, data = self.model, self.dataset
        return build_model(model.name, model.options, data.shape, data.classes, self.scenario.seed)

    def _stage(self, number: int) -> Any:
        return divide(self._network(), self.at)[number]

    def start_guards(self) -> None:
        """Raises BadInput where a guard has no meaning on this task, as one of labels in two classes on ten."""
        about = (self.dataset.shape, self.shapes[1], self.dataset.classes, self.scenario.training.batch)
        for guard in self._split.guards:
            guard.build(SPLIT_GUARDS).start(About(*about, generator(0, "never drawn from")))

    def machine(self, index: int, ids: Sequence[PeerId], late: bool = False) -> Machine:
        scenario, split = self.scenario, self._split
        strategy: SplitStrategy = scenario.strategy.build(SPLITS)
        training = scenario.training
        kit = SplitKit(
            me=ids[index],
            order=tuple(ids),
            plan=self._plan,
            rounds=scenario.rounds,
            steps=training.local_steps,
            size=self.sizes[0],
            samples=training.batch * training.local_steps,
            micro_batches=split.micro_batches,
            in_flight=split.in_flight,
            patience=scenario.timing.round,
            evaluate_every=scenario.evaluate_every,
            heads=self._swarm().machine(index, ids[: scenario.peers]) if self._averages(index) else None,
        )
        return strategy.machine(kit)

    def _averages(self, index: int) -> bool:
        return bool(self.rows) and index < self._plan.heads

    def _swarm(self) -> "_Heads":
        """The heads as the members of a swarm: its model is the head."""
        strategy = _heads(self.scenario.strategy.build(SPLITS))
        scenario = self.scenario.model_copy(update={"strategy": strategy, "split": None, "adversary": None})
        first = self.initial[: self.sizes[0]]
        own = layout(divide(self._network(), self.at)[0])
        return _Heads(scenario, self.dataset, self.shards, self.rows, first, own=tuple(own))

    def executor(self, index: int) -> Executor:
        if self._plan.answers:
            return with_errands(self._answers(index))
        stages = self.stages(index)
        if not self._plan.encrypted:
            return with_errands(self._hijacked(index, stages.run))
        layer, settings = require_linear(self._stage(1)), settings_of(self.scenario)
        if index < self._plan.heads:
            return with_errands(LayerUser(stages, *layer, settings).run)
        most = max(settings.batch, CHUNK)
        return with_errands(LayerOwner(stages, *layer, most, lambda: secrets.token_bytes(32)).run)

    def _answers(self, index: int) -> Executor:
        """What does the tasks of encrypted inference: who has the network has the public pictures to train it with."""
        data = self.dataset
        if index < self._plan.heads:
            return Asker(self._stage(0), data.test_x, data.test_y, data.classes).run
        pictures = data.public_x, data.public_y
        settings, seed = settings_of(self.scenario), self.scenario.seed
        trainer = Trainer(*pictures, *pictures, self._network, settings, seed, index)
        return Answerer(trainer, self._network(), self.initial, lambda: secrets.token_bytes(32)).run

    @property
    def tampering(self) -> frozenset[int]:
        """Members that are active adversaries: those at the vantage who sit where their hijack is done."""
        adversary = self.scenario.adversary
        if not adversary or not adversary.tamper:
            return frozenset()
        seat = adversary.tamper.build(HIJACKS).seat
        named = {self.names.index(place) for place in adversary.places if place in self.names} | {*adversary.peers}
        return frozenset(i for i in named if self.role(i) == seat)

    @property
    def tamper(self) -> None:
        """Nobody's machine lies here; some members' workers do."""
        return None

    def require_hijackers(self) -> None:
        """Raises BadInput where a hijack is asked for, and nobody sits where it is done."""
        adversary = self.scenario.adversary
        encrypts = self._plan.encrypted or self._plan.answers
        if not adversary or not adversary.tamper or (self.tampering and not encrypts):
            return
        name, seat = adversary.tamper.name, adversary.tamper.build(HIJACKS).seat
        if encrypts:
            raise BadInput(f"Hijack {name!r} changes what is said in clear; take a strategy that encrypts nothing.")
        known = ", ".join(n for i, n in enumerate(self.names) if self.role(i) == seat)
        raise BadInput(f"Hijack {name!r} is done by a {seat}; set adversary.vantage to one of {known}.")

    def _hijacked(self, index: int, honest: Executor) -> Executor:
        """What does a member's tasks, where `honest` does them honestly."""
        if index not in self.tampering:
            return honest
        adversary = self.scenario.adversary
        assert adversary is not None
        assert adversary.tamper is not None
        hijack: Hijack = adversary.tamper.build(HIJACKS)
        public = self.public([PeerId(name) for name in self.names])
        rng = generator(self.scenario.seed, "hijack", index)
        return hijack.execute(honest, Knows(public, index, self._plan.played(index), rng))

    def stages(self, index: int) -> Stages:
        """What does member `index`'s work."""
        scenario, split, data = self.scenario, self._split, self.dataset
        examples: dict[int, Examples] = {}
        if index < self._plan.heads:
            mine = self.shards[index]
            examples[index] = Examples(data.train_x[mine], data.train_y[mine], data.test_x, data.test_y)
        elif self._plan.labels == "held" and self._may_be_last(index):
            examples = {i: Examples(y=data.train_y[shard]) for i, shard in enumerate(self.shards)}
        options = StageOptions(
            settings=settings_of(self.scenario),
            seed=scenario.seed,
            me=index,
            shapes=self.shapes,
            classes=data.classes,
            forward=split.codec.build(CODECS),
            backward=split.gradients.build(CODECS),
            guards=tuple(guard.build(SPLIT_GUARDS) for guard in split.guards),
            labels=self._plan.labels,
            copies=self._plan.copies,
            private=self._private(index),
        )
        return Stages(self._stage, examples, options)

    def _may_be_last(self, index: int) -> bool:
        """Whether a member plays the last stage, or may have to."""
        return self._plan.stages - 1 in self._plan.played(index) or index in self._plan.standbys

    def _private(self, index: int) -> int:
        """What a member draws noise from: its own secret among real processes, else the scenario's seed."""
        if self.scenario.world == "libp2p":
            return secrets.randbits(63)
        return seed_number(self.scenario.seed, "private", index)

    # --- what is known of it -----------------------------------------------------------------------------------

    def models(self, checkpoints: Path, names: Iterable[str]) -> list[Vector]:
        """The whole network of every data owner among `names`, put together from those who played its stages."""
        found: dict[str, Vector] = {}
        for name in self.names:
            path = checkpoints / f"{stem(name)}.safetensors"
            if path.exists():
                found[name] = load_parameters(path)
        whole = []
        for head, route in enumerate(self._routes(checkpoints.parent)):
            if self.names[head] not in names or any(self.names[player] not in found for player in route):
                continue
            whole.append(np.concatenate([self._of(found, player, stage, route) for stage, player in enumerate(route)]))
        return whole

    def _routes(self, folder: Path) -> list[list[int]]:
        """Who played each stage at last, as the run in `folder` says."""
        routes = [list(route) for route in self._plan.route]
        if self._plan.standbys and (events := folder / "events.jsonl").exists():
            for line in events.read_text(encoding="utf-8").splitlines():
                event = json.loads(line)
                if event["kind"] == "replaced":
                    routes[event["peer"]][event["stage"]] = self.names.index(event["by"])
        return routes

    def _of(self, found: dict[str, Vector], player: int, stage: int, route: Sequence[int]) -> Vector:
        """The parameters of one stage, in what its player left behind."""
        before = {*self._plan.played(player), *(s for s, who in enumerate(route) if who == player)}
        start = sum(self.sizes[s] for s in before if s < stage)
        mine = found[self.names[player]][start : start + self.sizes[stage]]
        if not self._plan.encrypted or stage != 1:
            return mine
        return mine + found[self.names[route[0]]][-self.sizes[stage] :]  # the data owner's share is its last

    def blind(self, ids: Sequence[PeerId], place: Vantage) -> frozenset[PeerId]:
        """Data owners at `place` whose labels are held by somebody who is not."""
        if self._plan.labels != "held" or any(ids[route[-1]] in place.controls for route in self._plan.route):
            return frozenset()
        return frozenset(ids[route[0]] for route in self._plan.route) & place.controls

    def held(self, ids: Sequence[PeerId], place: Vantage) -> dict[PeerId, np.ndarray]:
        """Where a member at `place` plays the last stage and holds labels: those of every data owner's examples."""
        if self._plan.labels != "held" or not any(ids[route[-1]] in place.controls for route in self._plan.route):
            return {}
        return {ids[i]: self.dataset.train_y[shard].astype(np.int64) for i, shard in enumerate(self.shards)}

    def public(self, ids: Sequence[PeerId]) -> Public:
        split = self._split
        about = {
            "cuts": list(self.at),
            "route": [[str(ids[player]) for player in route] for route in self._plan.route],
            "labels": self._plan.labels,
            "copies": self._plan.copies,
            "micro_batches": split.micro_batches,
            "codec": split.codec.model_dump(),
            "gradients": split.gradients.model_dump(),
            "guards": [guard.model_dump() for guard in split.guards],
            "examples": [len(shard) for shard in self.shards],
            "momentum": self.scenario.training.momentum,
        }
        return replace(super().public(ids), split=about)


@dataclass(frozen=True)
class _Heads(Cast):
    """Heads as a swarm. `own`: what is where in a head's parameters."""

    own: Layout = ()

    @cached_property
    def layout(self) -> Layout:
        return self.own

    @property
    def work(self) -> WorkSource:
        return _HeadSource()


class _HeadSource:
    """Makes the tasks of a swarm of heads. A proximal term or a correction has no place in a split step."""

    def train(self, round_: int, parameters: Vector, proximal: float = 0.0, correction: Vector | None = None) -> object:
        return HeadTrain(round_, parameters)

    def evaluate(self, parameters: Vector) -> object:
        return HeadEvaluate(parameters)


def _heads(strategy: Any) -> Choice:
    """The protocol of swarm mode that averages the heads."""
    asked = strategy.heads
    return Choice.model_validate({"name": asked} if isinstance(asked, str) else asked)


def _cuts(network: Any, split: Split, plan: Plan) -> tuple[int, ...]:
    """Where a network is cut. Raises BadInput where it cannot be, or not for ciphertexts."""
    if plan.answers:
        return before_answers(network)
    if not plan.encrypted:
        return places(network, split.cuts, plan.stages)
    at = around_linear(network, split.cuts)
    require_linear(divide(network, at)[1])
    return at


def _rows(scenario: Scenario, strategy: SplitStrategy) -> dict[int, dict[int, float]]:
    """The heads' mixing matrix, where heads are averaged. Raises BadInput."""
    if not strategy.averages:
        return {}
    heads: Strategy = _heads(strategy).build(STRATEGIES)
    if heads.centralised:
        raise BadInput("The heads of splitfed average themselves, without a server; set strategy.heads to gossip.")
    topology: Topology = scenario.topology.build(TOPOLOGIES)
    return heads.weights(topology.graph(scenario.peers, scenario.seed))


def _refuse(scenario: Scenario, strategy: SplitStrategy, plan: Plan) -> None:
    """Raises BadInput for what split mode has no meaning for."""
    name = scenario.strategy.name
    names = {seat.name for seat in plan.seats}
    for whom in (*scenario.links.slow, *(fault.whom for fault in scenario.faults)):
        if whom not in names:
            raise BadInput(f"There is no {whom!r} in this run; known: {', '.join(sorted(names))}.")
    if scenario.adversary:
        scenario.adversary.require_among([seat.name for seat in plan.seats])
    if scenario.training.private:
        raise BadInput(f"training.private protects updates, and strategy {name!r} shows activations; use split.guards.")
    if scenario.door.open or scenario.churn:
        raise BadInput(f"Nobody can join strategy {name!r} while it runs; leave door and churn out.")
    if scenario.sharing.name != "model" or scenario.evaluate_on != "all":
        raise BadInput(f"Strategy {name!r} shares stages of one model for all; leave out sharing and evaluate_on.")
    if scenario.checkpoints.every:
        raise BadInput(f"A run of strategy {name!r} cannot be taken up again; leave out checkpoints.every.")
    if scenario.guards and not strategy.averages:
        raise BadInput(f"guards are for updates, and strategy {name!r} says none; take split.guards.")
    if scenario.aggregator.name != "mean" and not strategy.averages:
        raise BadInput(f"strategy {name!r} averages nothing, so aggregator would do nothing; leave it out.")
    split = scenario.split or Split()
    if (plan.encrypted or plan.answers) and (split.codec.name, split.gradients.name) != ("dense", "dense"):
        raise BadInput(f"Strategy {name!r} says ciphertexts alone; leave out split.codec and split.gradients.")
    if plan.answers and (split.cuts or split.guards or split.micro_batches > 1):
        raise BadInput(f"Strategy {name!r} cuts nothing; leave out split.cuts, split.guards and split.micro_batches.")
    if scenario.model:
        scenario.model.build(MODELS)
