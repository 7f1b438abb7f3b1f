"""A mesh that is nothing but the formulas of gossip and the star, in numpy, and the views its peers have of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from veilmesh.attacks import Public, Vantage, View, observe
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Codec, Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record
from veilmesh.split import messages as messages_of_split
from veilmesh.split.cut import divide
from veilmesh.swarm import messages
from veilmesh.tasks.models.build import build_model, initial_vector, vector_to_parameters

torch.set_num_threads(1)


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def record(sender: PeerId, to: PeerId, message: messages.Message, *, at: PeerId | None = None) -> Record:
    body = messages.encode(message)
    return Record(0.0, at or to, sender, to, len(body), b"sealed", body)


@dataclass
class Mesh:
    """Peers a, b, c, ... on a graph given by the rows of W; every message is on record at both of its ends."""

    public: Public
    records: list[Record] = field(default_factory=list)

    def view(self, *controls: PeerId, taps_wire: bool = False) -> View:
        return observe(Vantage(frozenset(controls), taps_wire), self.records, self.public)

    def say(self, sender: PeerId, to: PeerId, message: messages.Message) -> None:
        self.records.append(record(sender, to, message))
        self.records.append(record(sender, to, message, at=sender))

    def update(self, sender: PeerId, to: list[PeerId], round_: int, x: Vector, codec: Codec | None = None) -> bytes:
        blob = table.encode(codec or Dense(), x, _rng())
        for peer in to:
            self.say(sender, peer, messages.Update(round_, self.public.batch * self.public.local_steps, blob))
        return blob

    def near(self, peer: PeerId) -> list[PeerId]:
        return [p for p in self.public.weights[peer] if p != peer]

    def gossip(self, updates: Mapping[PeerId, np.ndarray], codec: Codec | None = None) -> dict[str, Any]:
        """Run the rounds whose local updates are given, (T, d) for each peer; every x^t and u^t, by (peer, t)."""
        peers = self.public.peers
        x = dict.fromkeys(peers, self.public.initial)
        copies = dict(x)
        truth: dict[str, Any] = {"start": {}, "update": {}, "said": {}}
        for t in range(len(next(iter(updates.values())))):
            half = {v: x[v] + updates[v][t] for v in peers}
            for v in peers:
                truth["start"][v, t], truth["update"][v, t] = x[v], updates[v][t]
                decoded = table.decode(self.update(v, self.near(v), t, half[v] - copies[v], codec), x[v].size)
                truth["said"][v, t] = decoded
                copies[v] = copies[v] + decoded.values
            for v in peers:
                x[v] = half[v].copy()
                for j in peers:
                    if j in self.near(v):
                        x[v] += np.float32(self.public.weights[v][j]) * (copies[j] - copies[v])
        return truth

    def train(
        self, victim: PeerId, to: list[PeerId], pictures: np.ndarray, labels: np.ndarray, round_: int = 0
    ) -> None:
        """One step of SGD by `victim` on these pictures from the initial parameters, said to `to`."""
        public = self.public
        options = {k: v for k, v in public.model.items() if k != "name"}
        module = build_model(str(public.model["name"]), options, public.shape, public.classes, 0)
        vector_to_parameters(module, public.initial)
        loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(pictures)), torch.from_numpy(labels))
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])
        self.update(victim, to, round_, (-public.learning_rate * gradient).numpy())


def make_public(**changes: Any) -> Public:
    """Three peers on a complete graph, digit-like pictures, a small network."""
    given: dict[str, Any] = {"shape": (1, 8, 8), "classes": 4, "model": {"name": "mlp", "hidden": (16,)}, **changes}
    peers = given.pop("peers", ("a", "b", "c"))
    weights = given.pop("weights", {v: dict.fromkeys(peers, 1 / len(peers)) for v in peers})
    options = {k: v for k, v in given["model"].items() if k != "name"}
    initial = given.pop("initial", None)
    if initial is None:
        initial = initial_vector(given["model"]["name"], options, given["shape"], given["classes"], 3)
    base = Public(
        task="digits", shape=given["shape"], classes=given["classes"], model=given["model"], initial=initial,
        learning_rate=0.1, batch=1, local_steps=1, strategy="gossip", codec={"name": "dense"}, guards=(),
        weights=weights, peers=peers,
    )  # fmt: skip
    return replace(base, **given)


@pytest.fixture
def make_mesh() -> Any:
    """Builds a `Mesh` from changes to its `Public`."""
    return lambda **changes: Mesh(make_public(**changes))


@pytest.fixture
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Real pictures (N, 1, 8, 8) with labels 0..3."""
    from sklearn.datasets import load_digits

    bunch = load_digits(n_class=4)
    return (bunch.images[:, None] / 16).astype(np.float32), bunch.target.astype(np.int64)


@dataclass
class SplitRun:
    """Split training of one data owner in plain torch, every message on record at both of its ends.

    `seat`: "tail" (vanilla, labels sent), "held" (vanilla, labels held at the tail), or "body" (U-shaped).
    """

    public: Public
    seat: str
    pictures: np.ndarray
    labels: np.ndarray
    batches: list[np.ndarray] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    stages: list[torch.nn.Sequential] = field(default_factory=list)

    def train(self, steps: int, guard: Any = None) -> "SplitRun":
        """`steps` steps of SGD, a batch in order each; `guard(g, labels)`: what leaves instead of a gradient."""
        options = {k: v for k, v in self.public.model.items() if k != "name"}
        network = build_model(str(self.public.model["name"]), options, self.public.shape, self.public.classes, 0)
        vector_to_parameters(network, self.public.initial)
        self.stages = divide(network, self.public.split["cuts"])
        size = self.public.batch
        for step in range(steps):
            at = np.arange(step * size, (step + 1) * size) % len(self.labels)
            self.batches.append(at)
            self._step(step, at, guard)
        return self

    def _step(self, step: int, at: np.ndarray, guard: Any) -> None:
        x, y = torch.from_numpy(self.pictures[at]), torch.from_numpy(self.labels[at])
        entered: list[torch.Tensor] = []
        for number, stage in enumerate(self.stages):
            if number:
                x = x.detach().requires_grad_()
                entered.append(x)
                self._up(step, number, x, at)
            x = stage(x)
            entered.append(x)
        gradient = None
        loss = torch.nn.functional.cross_entropy(entered.pop(), y)
        left: torch.Tensor = loss
        for number in range(len(self.stages) - 1, -1, -1):
            parameters = list(self.stages[number].parameters())
            wanted = [*parameters, *([entered.pop()] if number else [])]
            found = list(torch.autograd.grad([left], wanted, None if gradient is None else [gradient]))
            if number:
                gradient = found.pop()
                if guard is not None and number == len(self.stages) - 1:
                    gradient = guard.gradient(gradient, y)
                blob = table.encode(Dense(), gradient.numpy().reshape(-1), _rng())
                self._say(number, number - 1, messages_of_split.Gradients(0, number - 1, step, 0, blob, loss.item()))
                left = entered.pop()
            with torch.no_grad():
                for parameter, g in zip(parameters, found, strict=True):
                    parameter -= self.public.learning_rate * g

    def _up(self, step: int, number: int, x: torch.Tensor, at: np.ndarray) -> None:
        blob = table.encode(Dense(), x.detach().numpy().reshape(-1), _rng())
        labels = self.labels[at].astype("<u2").tobytes() if self.seat == "tail" else b""
        which = at.astype("<u4").tobytes() if self.seat == "held" else b""
        rows = len(at)
        said = messages_of_split.Activations(0, number, step, 0, 1, rows, rows, blob, labels, which)
        self._say(number - 1, number, said)

    def _say(self, sender: int, to: int, message: messages_of_split.Message) -> None:
        route = self.public.split["route"][0]
        body = messages_of_split.encode(message)
        for end in (route[to], route[sender]):
            self.records.append(Record(float(len(self.records)), end, route[sender], route[to], len(body), b"x", body))

    def view(self, *controls: str) -> View:
        own = {PeerId("peer:0"): self._own} if "peer:0" in controls else {}
        held = {PeerId("peer:0"): self.labels} if self.seat == "held" and "tail" in controls else {}
        place = Vantage(frozenset(PeerId(c) for c in controls))
        return observe(place, self.records, self.public, own.get(PeerId("peer:0")), None, held)

    def _own(self, peer: PeerId, round_: int) -> tuple[np.ndarray, np.ndarray]:
        steps = range(round_ * self.public.local_steps, (round_ + 1) * self.public.local_steps)
        at = np.concatenate([self.batches[step] for step in steps])
        known = self.seat != "held"
        return self.pictures[at], self.labels[at] if known else np.full(len(at), -1)


@pytest.fixture
def make_split(digits: tuple[np.ndarray, np.ndarray]) -> Any:
    """Builds a `SplitRun` of four digits: from its seat, and changes to its `Public`."""

    def build(seat: str = "tail", **changes: Any) -> SplitRun:
        x, y = digits
        other = "body" if seat == "body" else "tail"
        route = ["peer:0", other, "peer:0"] if seat == "body" else ["peer:0", other]
        about = {
            "cuts": [3, 5] if seat == "body" else [3], "route": [route], "copies": False, "micro_batches": 1,
            "labels": {"tail": "sent", "held": "held", "body": "own"}[seat], "codec": {"name": "dense"},
            "gradients": {"name": "dense"}, "guards": [], "examples": [100], "momentum": 0.0,
        }  # fmt: skip
        about |= changes.pop("split", {})
        given = {"model": {"name": "mlp", "hidden": (16, 12)}, "batch": 10, "peers": ("peer:0", other), "weights": {},
                 "strategy": "u-shaped" if seat == "body" else "vanilla", "split": about, "pictures": x[100:200],
                 "picture_labels": y[100:200], **changes}  # fmt: skip
        return SplitRun(make_public(**given), seat, x[:100], y[:100])

    return build
