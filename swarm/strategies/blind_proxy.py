"""Homomorphic gossip without a shared key: a blind proxy adds what a peer's neighbours encrypt for it.

Theory of operation. Everybody has a key pair of its own, and says the public half to all. In round t

    h_j = x_j + u_j                                       local training, after the guards
    q_j = Q(h_j - x_0)                                    rounded to a grid; what is cut off stays with j
    every neighbour j of i says Enc_i(q_j) to the proxy of i, never to i
    the proxy adds ciphertexts, and says Enc_i(sum q_j) to i, with the names of those whose part is in it
    x_i = h_i + w (sum q_j - n q_i),  w = 1 / (1 + neighbours)

which, where all are neighbours and nobody is missing, is the exact average of all q, plus what i itself had cut off.
Sums are exact, so models do not depend on what keys and ciphertexts are drawn from: the system's randomness, nor on the
scheme: BFV (Brakerski 2012, Fan and Vercauteren 2012), or for comparison Paillier's (1999), which is slower. One
weight for every link, for i is shown a sum and no parts; neighbours are the same peers in every round, for sums of sets
that differ by one peer would differ by that peer.

Who learns what. `i` learns the sum of its neighbours' models, nothing of any single one beyond that. The proxy learns
who spoke, and nothing of what: it has no key. **A peer and its proxy of the round together learn every neighbour's
model**, and since the proxy goes round, so do any two peers who collude, each time that one is the other's proxy.
**A peer and all but one of its neighbours learn the remaining one's model.** A proxy adds `fewest` models or none: the
sum of one would be that one's model. Who taps the wire, or relays, learns sizes and times. A lying proxy can replace a
sum (only its range is checked); a lying neighbour can spoil it, and nobody can tell who did. When a neighbour is
missing in one round, the sums before and after differ by its model, but for what all others have learnt meanwhile:
repeated sums hide less than one.

A key is bound to what is encrypted under it by its hash: a peer that says other keys to some than to others finds its
proxy dropping theirs.

Faults. What a proxy has not been given by half a patience after the first part is left out. A sum that does not come
within a patience of a peer's own say, or whose proxy is gone, or that was refused, leaves the peer with its own model
(`group` 1); the next round has another proxy. Whose key was never heard is asked for it once, and then passed over.

States: KEYING (draws a pair, waits for the others' keys) -> TRAINING (waits for WorkDone) -> SAYING (encrypts) ->
SUMMING (waits for its sum, or its timer) -> READING (decrypts) -> TRAINING ... -> CLOSING (waits for the last
evaluation, and for what it still has to add for others) -> stopped.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, ClassVar, cast

import networkx as nx
import numpy as np
from pydantic import Field

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.homomorphic import Exact, Floats, Keys
from veilmesh.crypto.homomorphic_work import Decrypt, Encrypt, MakeKeys, Refused
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
    Machine,
    Note,
    PeerId,
    PeersChanged,
    Received,
    Send,
    SetTimer,
    Started,
    Stop,
    TimerFired,
    Work,
    WorkDone,
    WorkFailed,
)
from veilmesh.swarm import messages
from veilmesh.swarm.guards.base import RoundInfo
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.adding import ProxySide
from veilmesh.swarm.strategies.base import STRATEGIES, Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.ciphers import ExactName, exact_scheme, fingerprint, usable
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.strategies.keyring import Keyring
from veilmesh.swarm.strategies.proxies import Table, distances
from veilmesh.swarm.topology import complete_rows

__all__ = ["AHEAD", "BlindProxy", "BlindProxyMachine"]

AHEAD = 4
"""How many rounds what is heard may be ahead of ours, or behind: ciphertexts are large, and everybody waits for all."""


class Phase(Enum):
    KEYING = auto()
    TRAINING = auto()
    SAYING = auto()
    SUMMING = auto()
    READING = auto()
    CLOSING = auto()


@STRATEGIES.register("blind-proxy")
@dataclass(frozen=True)
class BlindProxy:
    """Homomorphic gossip: peers encrypt for each receiver, and a proxy without its key adds (exact sums).

    `neighbours`: how many each averages with, in every round the same (0: all others). `fewest`: a proxy adds so many
    models or none. `limit`: the largest change from the common beginning that a coordinate can say (what is beyond it
    stays with the peer); `bits`: how finely, in 2^bits - 1 levels. `rekey`: rounds that a key pair lasts (0: all).
    `scheme`: BFV, or Paillier under keys of 2048 bits.
    """

    neighbours: Annotated[int, Field(ge=0)] = 0
    fewest: Annotated[int, Field(ge=2)] = 2
    limit: Annotated[float, Field(gt=0, le=1e5, allow_inf_nan=False)] = 4.0
    bits: Annotated[int, Field(ge=4, le=24)] = 14
    rekey: Annotated[int, Field(ge=0)] = 0
    scheme: ExactName = "bfv"

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = False

    def machine(self, kit: Kit) -> Machine:
        table = Table(len(kit.order), kit.seed, self.neighbours)
        scheme = exact_scheme(self.scheme, self.bits, len(table.neighbours(0)), self.limit)
        usable(kit, scheme, "blind-proxy")
        return BlindProxyMachine(kit, self, table, scheme)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        rows = complete_rows(graph, "blind-proxy")
        if (near := len(distances(len(rows), self.neighbours))) < self.fewest:
            raise BadInput(
                f"strategy.fewest = {self.fewest}, but a peer has {near} neighbours here, so no proxy would ever add; "
                "take more peers, more neighbours, or a lower fewest (at least 2)."
            )
        return rows


class BlindProxyMachine:
    """One peer: a receiver of sums, a neighbour of others, and in every round a proxy for one of them."""

    def __init__(self, kit: Kit, options: BlindProxy, table: Table, scheme: Exact) -> None:
        self._kit, self._fewest = kit, options.fewest
        self._me = kit.order.index(kit.me)
        self._table, self._scheme = table, scheme
        self._near = table.neighbours(self._me)
        self._x = self._half = kit.initial
        self._said = np.zeros(kit.initial.size)  # q of this round
        self._count = 0  # models in the sum that is being decrypted
        self._round = 0
        self._phase = Phase.KEYING
        self._keys = Keyring(options.rekey, scheme)
        self._encrypting: set[int] = set()  # places of those for whom our part is being encrypted
        self._answered: set[tuple[int, PeerId]] = set()
        self._proxy = ProxySide(kit, table, self._keys, scheme, options.fewest)
        self._sums: dict[int, messages.Summed] = {}
        self._present: frozenset[PeerId] = frozenset()
        self._scored = self._overdue = self._stopped = False
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = self._handle(event, now)
        return effects + self._stop_if_done()

    def _handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(present):
                self._see(present)
                return self._begin()
            case WorkDone(name, result):
                return self._done(name, result, now)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case Received(sender, body):
                return self._received(sender, messages.decode(body), now)
            case PeersChanged(present):
                appeared = self._see(present)
                return [*self._tell_key(sorted(appeared)), *self._proceed(now)]
            case TimerFired(name):
                return self._expired(name, now)

    def _done(self, name: str, result: object, now: float) -> list[Effect]:
        kind, _, number = name.partition("-")
        match kind:
            case "keys":
                return self._drawn(cast(Keys, result), now)
            case "train":
                return self._encrypt(cast(Trained, result), now)
            case "encrypt":
                return self._say(int(number.partition("-")[2]), cast(bytes | Refused, result), now)
            case "add":
                return self._proxy.added(int(number), cast(bytes | Refused, result))
            case "decrypt":
                return self._mix(cast("Floats | Refused", result), now)
        note, self._scored = self._evaluation.take(name, cast(Evaluated, result))
        return [note]

    def _expired(self, name: str, now: float) -> list[Effect]:
        kind, _, number = name.partition("-")
        if kind == "serve":
            return self._proxy.serve(int(number))
        self._overdue |= kind == "close"
        if kind == "keys" and self._phase is Phase.KEYING:
            ask = messages.encode(messages.Ask(self._keys.term(self._round)))
            return [*(Send(p, ask) for p in self._keyless()), *self._train()]
        if kind == "round" and self._phase is Phase.SUMMING:
            late = Note("late", {"round": self._round, "peers": [str(self._proxy_of(self._me))]})
            return [late, *self._close(self._half, 1, now)]
        return []

    # --- keys --------------------------------------------------------------------------------------------------

    def _begin(self) -> list[Effect]:
        if self._keys.own(self._round) is not None:
            return self._train()
        self._phase = Phase.KEYING
        return [Work(f"keys-{self._round}", MakeKeys(self._scheme))]

    def _drawn(self, keys: Keys, now: float) -> list[Effect]:
        self._keys.drawn(self._keys.term(self._round), keys)
        timer = SetTimer("keys", now + self._kit.patience)
        return [*self._tell_key(sorted(self._present)), timer, *self._proceed(now)]

    def _tell_key(self, peers: list[PeerId]) -> list[Effect]:
        if (keys := self._keys.own(self._round)) is None:
            return []
        body = messages.encode(messages.Key(self._keys.term(self._round), keys.public))
        return [Send(p, body) for p in peers]

    def _see(self, present: frozenset[PeerId]) -> frozenset[PeerId]:
        """Those present are these now; who came."""
        appeared, self._present = present - self._present, present
        self._proxy.see(present)
        return appeared

    def _proxy_of(self, place: int) -> PeerId:
        return self._kit.order[self._table.proxy(self._round, place)]

    def _keyless(self) -> list[PeerId]:
        others = [p for p in self._kit.order if p in self._present]
        return [p for p in others if self._keys.public(self._round, p) is None]

    # --- one round ---------------------------------------------------------------------------------------------

    def _train(self) -> list[Effect]:
        self._phase = Phase.TRAINING
        return [CancelTimer("keys"), Work(f"train-{self._round}", self._kit.work.train(self._round, self._x))]

    def _encrypt(self, trained: Trained, now: float) -> list[Effect]:
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._x))
        self._half = self._x + update
        if reason := astray(self._half):
            return [self._stop(reason)]
        self._phase = Phase.SAYING
        change = self._half - self._kit.initial
        self._said = self._scheme.dequantise(self._scheme.quantise(change))
        effects: list[Effect] = list(self._kit.sealer.alarms())
        effects.append(Note("trained", {"round": self._round, "loss": trained.loss}))
        if clipped := int((np.abs(change) > self._scheme.limit).sum()):
            effects.append(Note("clipped", {"round": self._round, "coordinates": clipped}))
        keys = [(place, self._keys.public(self._round, self._kit.order[place])) for place in self._hearers()]
        works = {place: Encrypt(self._scheme, key, change) for place, key in keys if key is not None}
        self._encrypting = set(works)
        effects += [Work(f"encrypt-{self._round}-{place}", task) for place, task in works.items()]
        return effects if works else [*effects, *self._said_all(now)]

    def _hearers(self) -> list[int]:
        """The neighbours, by place, that are there and whose proxies are."""
        alive = self._present | {self._kit.me}
        return [p for p in self._near if self._kit.order[p] in self._present and self._proxy_of(p) in alive]

    def _say(self, place: int, ciphertext: bytes | Refused, now: float) -> list[Effect]:
        self._encrypting.discard(place)
        effects = list[Effect]()
        if isinstance(ciphertext, bytes):  # else its key, though of the right form, was none
            key = fingerprint(self._keys.public(self._round, self._kit.order[place]) or b"")
            message, proxy = messages.Encrypted(self._round, place, key, ciphertext), self._proxy_of(place)
            mine = proxy == self._kit.me
            effects += self._proxy.take(proxy, message, now) if mine else [Send(proxy, messages.encode(message))]
        return effects if self._encrypting else [*effects, *self._said_all(now)]

    def _said_all(self, now: float) -> list[Effect]:
        self._phase = Phase.SUMMING
        self._proxy.spoke(self._round)
        return [SetTimer("round", now + self._kit.patience), *self._proceed(now)]

    def _proceed(self, now: float) -> list[Effect]:
        """Whatever can be done now: begin, add, read."""
        effects = self._proxy.proceed()
        if self._phase is Phase.KEYING and self._keys.own(self._round) is not None and not self._keyless():
            effects += self._train()
        if self._phase is Phase.SUMMING:
            effects += self._read(now)
        return effects

    def _read(self, now: float) -> list[Effect]:
        total, keys = self._sums.pop(self._round, None), self._keys.own(self._round)
        if total is None:
            return [] if self._proxy_of(self._me) in self._present else self._close(self._half, 1, now)
        if not total.places or keys is None:
            return self._close(self._half, 1, now)
        self._phase = Phase.READING
        self._count = len(total.places)
        task = Decrypt(self._scheme, keys, total.blob, self._kit.initial.size, self._count)
        return [CancelTimer("round"), Work(f"decrypt-{self._round}", task)]

    def _mix(self, total: Floats | Refused, now: float) -> list[Effect]:
        if isinstance(total, Refused):
            return [Note("unreadable", {"round": self._round}), *self._close(self._half, 1, now)]
        offset = (total - self._count * self._said) / (1 + len(self._near))
        return self._close((self._half + offset).astype(np.float32), 1 + self._count, now)

    def _close(self, x: Vector, group: int, now: float) -> list[Effect]:
        self._x = x
        note = Note("round", {"round": self._round, "group": group})
        self._round += 1
        self._proxy.forget(self._round - AHEAD)
        self._sums = {r: s for r, s in self._sums.items() if r >= self._round}
        due = self._evaluation.due(self._round, lambda: self._x)
        if self._round < self._kit.rounds:
            return [CancelTimer("round"), note, *due, *self._begin()]
        self._phase = Phase.CLOSING
        return [CancelTimer("round"), note, *due, SetTimer("close", now + self._kit.patience)]

    def _stop_if_done(self) -> list[Effect]:
        if self._stopped or not self._scored or (self._proxy.owes(self._kit.rounds - 1) and not self._overdue):
            return []
        return [self._stop("finished")]

    def _stop(self, reason: str) -> Stop:
        self._stopped = True
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))

    # --- what the others say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message, now: float) -> list[Effect]:
        if sender not in self._kit.order or sender == self._kit.me:
            raise RemoteError(Refusal.MISMATCH, "not a member")
        match message:
            case messages.Key(round=round_, blob=blob):
                self._keys.check(round_, sender, blob, self._round)
                self._keys.take(round_, sender, blob)
                return self._proceed(now)
            case messages.Ask(round=round_):
                return self._tell_again(sender, round_)
            case messages.Encrypted(round=round_, blob=blob):
                self._check_round(round_)
                self._scheme.check_ciphertext(blob, self._kit.initial.size)
                self._proxy.check(sender, message)
                return [*self._proxy.take(sender, message, now), *self._proceed(now)]
            case messages.Summed(round=round_):
                return self._take_sum(sender, round_, message, now)
            case _:
                raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} to a blind proxy")

    def _tell_again(self, sender: PeerId, round_: int) -> list[Effect]:
        """Once in a term: a key is large, and a question is small."""
        if round_ != self._keys.term(self._round) or (round_, sender) in self._answered or sender not in self._present:
            return []
        self._answered = {(r, p) for r, p in self._answered if r == round_} | {(round_, sender)}
        return self._tell_key([sender])

    def _check_round(self, round_: int) -> None:
        if not self._round - AHEAD <= round_ < min(self._round + AHEAD, self._kit.rounds):
            raise RemoteError(Refusal.MISMATCH, f"round {round_} while we are in {self._round}")

    def _take_sum(self, sender: PeerId, round_: int, message: messages.Summed, now: float) -> list[Effect]:
        self._check_round(round_)
        if sender != self._kit.order[self._table.proxy(round_, self._me)]:
            raise RemoteError(Refusal.MISMATCH, f"not our proxy in round {round_}")
        if not set(message.places) <= set(self._near) or 0 < len(message.places) < self._fewest:
            raise RemoteError(Refusal.MISMATCH, "a sum of others than our neighbours, or of too few")
        if message.places:
            self._scheme.check_ciphertext(message.blob, self._kit.initial.size)
        if round_ in self._sums:
            raise RemoteError(Refusal.MISMATCH, f"a second sum for round {round_}")
        if round_ >= self._round and self._phase is not Phase.CLOSING:
            self._sums[round_] = message
        return self._proceed(now)
