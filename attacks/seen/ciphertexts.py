"""What an adversary reads in homomorphic ciphertexts that it has a key to: nothing is broken here, keys are used.

A mesh with one shared key (`swarm/strategies/shared_key.py`): whoever takes part was told the key, in a message like
any other; `opened` decrypts every neighbour's model with it, and what is left is a gossip with public copies.

Blind proxies (`swarm/strategies/blind_proxy.py`): a peer's key is its own, and reaches a View only if that peer is
controlled and passed it on to an accomplice (`tampers/pool_keys.py`). `behind_proxies` then gives what controlled peers
hold of what was encrypted under their keys: sums at a receiver, and single models where its proxy is controlled too.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from veilmesh.attacks.seen.update import Observed, mean_of
from veilmesh.attacks.view import Public, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.cpad import RecoveredKey, recover_secret
from veilmesh.crypto.homomorphic import Approximate, Keys, Scheme
from veilmesh.crypto.shared_key import SharedKey
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.ciphers import exact_scheme, scheme_for

__all__ = ["Opened", "behind_proxies", "in_ciphertexts", "opened", "recovered_key", "shared_key"]


@dataclass(frozen=True, slots=True)
class Opened:
    """The mean `update` (d,) of `members` in a round (of one: its update), the adversary's own last, and the `start`
    (d,) they trained from; models rounded as they were said."""

    round: int
    members: tuple[PeerId, ...]
    start: Vector
    update: Vector


def shared_key(view: View) -> SharedKey | None:
    """The key that everybody of a shared-key mesh was told, if a controlled peer was there to hear it."""
    for _, message in _bodies(view):
        if isinstance(message, messages.Key):
            with suppress(RemoteError):
                return SharedKey.accept(_scheme(view.public), message.blob)
    return None


def recovered_key(view: View) -> RecoveredKey | None:
    """The key that everybody of a shared-key mesh has, from sums that were published and the ciphertexts that are in
    them, as somebody would who was never told it (IND-CPA-D; `crypto/cpad.py`). Only CKKS gives it away so."""
    scheme, dimension = _scheme(view.public), view.public.initial.size
    if not isinstance(scheme, Approximate):
        return None
    said = {(m.round, r.sender): m.blob for r, m in _bodies(view) if isinstance(m, messages.Update)}
    published = {m.blob: m for _, m in _bodies(view) if isinstance(m, messages.Summed) and len(m.blob) == 8 * dimension}
    sums, decryptions = [], []
    for message in published.values():
        parts = [said.get((message.round, p)) for i, p in enumerate(view.public.peers) if i in message.places]
        known = [part for part in parts if part is not None]
        with suppress(RemoteError):
            if known and len(known) == len(parts):
                sums.append(scheme.add(b"", known))
                decryptions.append(np.frombuffer(message.blob, "<f8"))
    return recover_secret(scheme, sums, decryptions)


def _scheme(public: Public) -> Scheme:
    """What a shared-key mesh encrypts with; CKKS in runs that were kept before there was a choice."""
    return scheme_for(public.options.get("scheme", "ckks"), len(public.peers))


def opened(view: View, key: SharedKey | RecoveredKey | None = None) -> View:
    """The view of a shared-key mesh as one of a gossip with public copies; any other view as it is. Without a `key`,
    with the one that a controlled peer was told."""
    if view.public.strategy != "shared-key" or (key := key or shared_key(view)) is None:
        return view
    dimension = view.public.initial.size
    said: dict[PeerId, tuple[int, Vector]] = {}
    records = []
    for record, message in _bodies(view):
        if not isinstance(message, messages.Update) or said.get(record.sender, (-1, 0))[0] >= message.round:
            continue  # the same to every neighbour: once is enough
        try:
            change = key.read(message.blob, dimension).astype(np.float32)
        except RemoteError:
            continue
        before, last = said.get(record.sender, (-1, np.zeros(dimension, np.float32)))
        said[record.sender] = message.round, change
        plain = _plain(view.public, message, change, last if before == message.round - 1 else None)
        records.append(replace(record, body=messages.encode(plain)))
    public = replace(view.public, strategy="gossip", codec={"name": "dense"})
    return replace(view, public=public, records=tuple(records))


def _plain(public: Public, update: messages.Update, change: Vector, last: Vector | None) -> messages.Message:
    """As the difference from what was said in the round before, or as a whole where that was not heard."""
    rng = np.random.default_rng(0)  # which nothing is drawn from
    if last is None:
        return messages.Copy(update.round, table.encode(Dense(), public.initial + change, rng))
    return messages.Update(update.round, update.samples, table.encode(Dense(), change - last, rng))


def in_ciphertexts(view: View, across: bool = False) -> Iterator[Observed]:
    """What keys of controlled peers open: sums, and single models where a proxy is controlled too."""
    for one in behind_proxies(view):
        yield mean_of(one.members, view.public, one.round, one.start, one.update, exact=True)


def behind_proxies(view: View) -> Iterator[Opened]:
    """What keys of controlled peers open of what controlled peers hold: single models, then sums less those.

    Where all are neighbours, everybody begins a round at the average of the last one's models, which a receiver knows
    by its sum and its own model; other beginnings than the first are unknown otherwise, and nothing is said of them.
    """
    public, controls = view.public, view.vantage.controls
    models, sums = _decrypted(view)
    starts = {0: public.initial}
    for (round_, receiver), (among, total) in sums.items():
        if len(among) == len(public.peers) - 1 and (own := models.get((round_, receiver))) is not None:
            starts[round_ + 1] = public.initial + (total + own) / np.float32(len(public.peers))
    for (round_, victim), change in models.items():
        if round_ in starts:
            yield Opened(round_, (victim,), starts[round_], public.initial + change - starts[round_])
    for (round_, _), (among, total) in sums.items():
        known = [models[round_, p] for p in among if (round_, p) in models]
        rest = sorted((p for p in among if (round_, p) not in models), key=lambda p: (p in controls, p))
        if rest and round_ in starts:
            mean = (total - sum(known)) / np.float32(len(rest))
            yield Opened(round_, tuple(rest), starts[round_], public.initial + mean - starts[round_])


_Models: TypeAlias = dict[tuple[int, PeerId], Vector]  # by round and peer: its change from the common beginning
_Sums: TypeAlias = dict[
    tuple[int, PeerId], tuple[tuple[PeerId, ...], Vector]
]  # by round and receiver: whose, and theirs


def _decrypted(view: View) -> tuple[_Models, _Sums]:
    public, keys = view.public, _Keys(view)
    models: _Models = {}
    sums: _Sums = {}
    for record, message in _bodies(view):
        match message:
            case messages.Encrypted(round=round_, to=to, blob=blob) if (round_, record.sender) not in models:
                if (model := keys.open(to, round_, blob, 1)) is not None:
                    models[round_, record.sender] = model
            case messages.Summed(round=round_, places=places, blob=blob) if places and (round_, record.to) not in sums:
                total = keys.open(public.peers.index(record.to), round_, blob, len(places))
                if total is not None and max(places) < len(public.peers):
                    sums[round_, record.to] = tuple(public.peers[place] for place in places), total
    return dict(sorted(models.items())), dict(sorted(sums.items()))


class _Keys:
    """The pairs of controlled peers. One that an accomplice outside of this vantage passed on is not used."""

    def __init__(self, view: View) -> None:
        public, everybody = view.public, len(view.public.peers)
        near = min(public.options["neighbours"] or everybody, everybody - 1)
        self._dimension = public.initial.size
        options = public.options
        self._scheme = exact_scheme(options.get("scheme", "bfv"), options["bits"], near, options["limit"])
        self._pairs: dict[int, dict[int, Keys]] = {}  # by place, and by the round from which it is good
        said = {(r.sender, m) for r, m in _bodies(view) if isinstance(m, messages.Key)}
        mine = [(sender, key) for sender, key in said if sender in view.vantage.controls]
        for sender, public_half in mine:
            for other, secret_half in mine:
                if (sender, public_half.round) == (other, secret_half.round):
                    self._keep(public.peers.index(sender), public_half, secret_half)

    def _keep(self, place: int, public_half: messages.Key, secret_half: messages.Key) -> None:
        with suppress(RemoteError):  # most are not the one or not the other
            pair = self._scheme.keys_of(public_half.blob, secret_half.blob)
            self._pairs.setdefault(place, {})[public_half.round] = pair

    def open(self, place: int, round_: int, blob: bytes, count: int) -> Vector | None:
        """What a ciphertext for the peer at `place` holds, the sum (d,) of `count`; None without its key."""
        terms = [term for term in self._pairs.get(place, {}) if term <= round_]
        if not terms:
            return None
        with suppress(RemoteError):
            pair = self._pairs[place][max(terms)]
            return self._scheme.decrypt(pair, blob, self._dimension, count).astype(np.float32)
        return None


def _bodies(view: View) -> Iterator[tuple[Record, messages.Message]]:
    for record in view.records:
        if record.body is not None:
            with suppress(RemoteError):
                yield record, messages.decode(record.body)
