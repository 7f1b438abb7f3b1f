"""What sizes and times alone tell: the view of a relay, a broker or a wire-tapper, who opens nothing.

Taken are the frames of a view that were seen in passing: who sent to whom, when, and how many bytes. From these follow
who takes part and the graph, the pace of the rounds, who is slow, which codec speaks (the network is public, so every
codec's length is known), and, where lengths depend on what is said, something of that. How much the last can be is
bounded by the entropy of the lengths on a link: so many bits a frame, and none where all are alike.

A frame's header says of which kind it is: signs of life and goodbyes are counted, and left out of the rest. Under cover
traffic all that leave are slots, and these are what is looked at; `traffic_cover` looks for more.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from statistics import fmean, median
from typing import Final, TypeAlias

import numpy as np

from veilmesh.attacks.view import IN_PASSING, Public, View
from veilmesh.core import BadInput, RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.crypto.frame import ENVELOPE_OVERHEAD, TAG_BYTES, Header, read
from veilmesh.crypto.padding import PADDINGS, Padding, padded_size
from veilmesh.peer.limits import Kind
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record

__all__ = ["Lengths", "Traffic", "learn", "lengths", "passing", "spoken"]

Link: TypeAlias = tuple[PeerId, PeerId]

CLOSE: Final = 0.03  # how near to a codec's own length, as a share of it, a frame has to be
AROUND: Final = 64  # bytes of a message around what the codec says
FAR: Final = 0.2  # the same, for lengths that depend on what is said: then only the nearest codec is named
LATE: Final = 0.1  # of the pace, by which a sender is later than the middle one of all to count as slow


@dataclass(frozen=True, slots=True)
class Lengths:
    """How much the lengths of frames differ: means over the links (one for each direction), and what they sum to."""

    distinct: float  # lengths on a link
    entropy: float  # bits a frame, of the lengths on its link
    most: int  # distinct lengths on the link that has most
    bytes: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What somebody learns who sees frames pass."""

    frames: int
    participants: tuple[PeerId, ...]
    links: tuple[Link, ...]  # both directions of each, sorted
    pace: float | None  # seconds between two frames on a link, median; None: never two
    lags: Mapping[PeerId, float]  # seconds that a peer's n-th frames are behind the first n-th ones of all, median
    slow: tuple[PeerId, ...]  # later than most by more than a tenth of the pace, the slowest first
    body: int | None  # the commonest length of what is sealed, in bytes
    codecs: tuple[str, ...]  # whose length that is, with their usual options, the nearest first
    lengths: Mapping[Padding, Lengths]  # as it was; and, of bodies that were not padded, as it would have been
    kinds: Mapping[str, int]  # how many frames there were of each kind, where their headers were seen


def learn(view: View, padding: Padding = "none") -> Traffic:
    """What the frames of `view` tell; `padding` is the one in force, which the headers show."""
    seen = passing(view)
    links, kinds = spoken(seen), Counter(kind.name.lower() for kind in map(_kind, seen) if kind)
    sealed = {link: [_sealed(record) for record in on_link] for link, on_link in links.items()}
    pace, lags = _pace(links.values()), _lags(links)
    body = _commonest(sealed.values())
    return Traffic(
        frames=sum(map(len, links.values())),
        participants=tuple(sorted({end for link in links for end in link})),
        links=tuple(sorted(links)),
        pace=pace,
        lags=lags,
        slow=_slow(lags, pace),
        body=body,
        codecs=_speaking(view.public, body, padding) if body else (),
        lengths={p: lengths(sealed.values(), p, padding) for p in ([*PADDINGS] if padding == "none" else [padding])},
        kinds=dict(kinds),
    )


def passing(view: View) -> list[Record]:
    """The frames that the adversary saw pass, by time: on their way if it was shown that, or as they arrived."""
    on_their_way = [record for record in view.records if record.at == IN_PASSING]
    arrived = [record for record in view.records if record.at == record.to and record.size]
    return sorted(on_their_way or arrived, key=lambda record: record.now)


def spoken(seen: Iterable[Record]) -> dict[Link, list[Record]]:
    """The frames of each link that carry, or could carry, a message of the protocol."""
    links: dict[Link, list[Record]] = defaultdict(list)
    for record in seen:
        if _kind(record) in (None, Kind.DATA, Kind.COVER):
            links[record.sender, record.to].append(record)
    return links


def _kind(record: Record) -> Kind | None:
    """What the header says that it is; None where that was not seen, or says nothing to us."""
    header = _header(record)
    return Kind(header.kind) if header and header.kind in set(Kind) else None


def _header(record: Record) -> Header | None:
    try:
        return read(record.frame) if record.frame else None
    except RemoteError:  # no frame of ours
        return None


def lengths(links: Iterable[Sequence[int]], wanted: Padding, given: Padding = "none") -> Lengths:
    """How the lengths on `links` differ, as they are (`wanted` is what was `given`) or as they would be."""
    shown = [[n if wanted == given else padded_size(n, wanted) for n in sizes] for sizes in links if sizes]
    counts = [Counter(sizes) for sizes in shown]
    return Lengths(
        distinct=fmean(map(len, counts)) if counts else 0.0,
        entropy=fmean(map(_entropy, counts)) if counts else 0.0,
        most=max(map(len, counts), default=0),
        bytes=sum(map(sum, shown)),
    )


def _entropy(counts: Counter[int]) -> float:
    total = counts.total()
    return abs(sum(n / total * log2(total / n) for n in counts.values()))


def _sealed(record: Record) -> int:
    """How many bytes are sealed in a frame: its header says so; without it, the frame's own length does."""
    header = _header(record)
    return header.ciphertext - TAG_BYTES if header else max(0, record.size - ENVELOPE_OVERHEAD)


def _pace(links: Iterable[Sequence[Record]]) -> float | None:
    gaps = [later.now - one.now for link in links for one, later in zip(link, link[1:], strict=False)]
    return median(gaps) if gaps else None


def _lags(links: Mapping[Link, Sequence[Record]]) -> dict[PeerId, float]:
    """Of every sender; frames that were lost make it look quicker than it is."""
    first: dict[int, float] = {}
    for link in links.values():
        for n, record in enumerate(link):
            first[n] = min(first.get(n, record.now), record.now)
    late: dict[PeerId, list[float]] = defaultdict(list)
    for (sender, _), link in links.items():
        late[sender] += [record.now - first[n] for n, record in enumerate(link)]
    return {sender: median(late[sender]) for sender in sorted(late)}


def _slow(lags: Mapping[PeerId, float], pace: float | None) -> tuple[PeerId, ...]:
    usual = median(lags.values()) + LATE * pace if lags and pace else float("inf")
    return tuple(sorted((peer for peer in lags if lags[peer] > usual), key=lambda peer: -lags[peer]))


def _commonest(links: Iterable[Sequence[int]]) -> int | None:
    """Lengths within a few bytes of each other are one: a round's number is longer in later rounds."""
    counts = Counter(size // AROUND for sizes in links for size in sizes)
    if not counts:
        return None
    step = counts.most_common(1)[0][0]
    return int(median(size for sizes in links for size in sizes if size // AROUND == step))


def _speaking(public: Public, body: int, padding: Padding) -> tuple[str, ...]:
    """The codecs that make as many bytes of a vector of the network's size."""
    x = np.random.default_rng(0).standard_normal(public.initial.size).astype(np.float32)
    off = {}
    for name in CODECS.names():
        try:
            long = len(table.encode(CODECS.build(name), x, np.random.default_rng(0)))
        except BadInput:  # it has an option without which it is nothing
            continue
        expected = padded_size(long + AROUND // 4, padding)
        off[name] = max(0, abs(body - expected) - AROUND) / expected
    ordered = sorted(off, key=lambda name: (off[name], name))
    near = [name for name in ordered if off[name] <= CLOSE]
    return tuple(near or [name for name in ordered[:1] if off[name] <= FAR])
