"""What somebody learns who opens nothing: the figures are those of the frames, and of nothing else."""

from math import log2

import numpy as np
import pytest

from veilmesh.attacks import Public, Vantage, View, observe
from veilmesh.attacks.traffic import learn, lengths
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.crypto.frame import frame_size
from veilmesh.crypto.padding import padded_size
from veilmesh.peer.transcript import Record


@pytest.fixture
def public(make_mesh) -> Public:
    return make_mesh().public


def frame(sender: str, to: str, now: float, body: int, *, at: str | None = None) -> Record:
    size = frame_size(body, with_hello=False) if at in (None, to) else 0
    return Record(now, at or to, sender, to, size, None, None)


def mesh(public: Public, late: float = 0.0, body: int = 1000, rounds: int = 8) -> View:
    """a, b and c tell each other in every round; c always `late` seconds after the others."""
    pairs = [(v, w) for v in "abc" for w in "abc" if v != w]
    records = [frame(v, w, t + (late if v == "c" else 0.0), body) for t in range(rounds) for v, w in pairs]
    return observe(Vantage(frozenset(), taps_wire=True), records, public)


def test_who_the_graph_and_the_pace(public):
    told = learn(mesh(public, rounds=5))
    assert told.participants == ("a", "b", "c")
    assert len(told.links) == 6
    assert (told.frames, told.pace, told.slow) == (30, 1.0, ())


def test_who_holds_the_rounds_up(public):
    assert learn(mesh(public, late=0.5)).slow == ("c",)
    assert learn(mesh(public, late=0.01)).slow == ()


@pytest.mark.parametrize("name", ["dense", "8-bit", "top-k", "sign"])
def test_a_codec_is_known_by_its_length_also_behind_padding(public, name):
    x = np.random.default_rng(1).normal(size=public.initial.size).astype(np.float32)
    long = len(table.encode(CODECS.build(name), x, np.random.default_rng(2)))
    assert name in learn(mesh(public, body=long + 12)).codecs
    assert name in learn(mesh(public, body=padded_size(long + 12, "padme")), "padme").codecs


def test_nobody_knows_a_codec_by_a_length_that_none_makes(public):
    assert learn(mesh(public, body=10 * 4 * public.initial.size)).codecs == ()


def test_entropy_is_none_where_all_frames_are_alike_and_full_where_none_are():
    alike, mixed = lengths([[7000] * 16], "none"), lengths([list(range(7000, 7016))], "none")
    assert (alike.entropy, alike.distinct) == (0.0, 1)
    assert mixed.entropy == pytest.approx(log2(16))
    assert lengths([[300, 300, 400, 400]], "none").entropy == pytest.approx(1.0)
    padded = lengths([list(range(7000, 7016))], "padme")
    assert (padded.entropy, padded.distinct) == (0.0, 1)
    assert padded.bytes > mixed.bytes


def test_lengths_that_depend_on_the_data_tell_something_and_padding_takes_it_away(public):
    """A codec that packs its bits says by its length how much there was to say; a plain one does not."""
    rng = np.random.default_rng(3)
    vectors = [rng.standard_t(1 + n / 4, size=20_000).astype(np.float32) for n in range(24)]
    packed = [len(table.encode(CODECS.build("8-bit-zstd"), x, rng)) for x in vectors]
    plain = [len(table.encode(CODECS.build("8-bit"), x, rng)) for x in vectors]
    assert lengths([plain], "none").entropy == 0.0
    assert lengths([packed], "none").entropy > 4.0
    assert lengths([packed], "power-of-two").entropy < lengths([packed], "padme").entropy + 1e-9
    assert lengths([packed], "padme").entropy < lengths([packed], "none").entropy


def test_a_relay_sees_the_frames_it_carries_and_nothing_else(public):
    sent = [frame(v, w, 0.0, 100, at=at) for v, w in ("ab", "ba", "bc", "cb", "ac") for at in (v, w)]
    told = [Record(r.now, r.at, r.sender, r.to, r.size, b"sealed", b"body") for r in sent]
    carries = frozenset({frozenset("ab"), frozenset("bc")})
    view = observe(Vantage(frozenset(), carries=carries), told, public)
    assert {(r.sender, r.to) for r in view.records} == {("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")}
    assert all(r.body is None and r.frame == b"sealed" and r.size and r.at == r.to for r in view.records)
    assert learn(view).frames == 4
    pooled = observe(Vantage(frozenset("c"), carries=carries), told, public)
    assert all((r.body is not None) == (r.at == "c") for r in pooled.records)


def test_of_nothing_nothing_is_learned(public):
    told = learn(observe(Vantage(frozenset()), [], public))
    assert (told.frames, told.participants, told.pace, told.body, told.codecs) == (0, (), None, None, ())
