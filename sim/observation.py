"""From a finished run to the View of one vantage: what its transcript kept there, and the adversary's own data.

The truth (which private pictures a peer used in which round) is recomputed from the scenario; it is in no file of the
run. Of it a View holds what the adversary's own peers trained on, and, only where a study asks for that easier setting,
the labels of its victims, or their choice of public pictures.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from veilmesh.attacks.view import Own, Public, Told, Vantage, View, observe
from veilmesh.core import BadInput, LocalError, generator
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record, read_transcript
from veilmesh.sim.cast import Cast, stem
from veilmesh.sim.passing import passing_folder, sightings
from veilmesh.sim.record import read_json

__all__ = ["observation", "own_data", "randomness", "told_choice", "told_labels", "transcript"]


def observation(
    folder: Path, cast: Cast, ids: Sequence[PeerId], vantage: str, *, told: bool = False, chosen: bool = False
) -> View:
    """What is seen of a finished run from `vantage`; `told`: with the labels of victims; `chosen`: with the public
    pictures that they chose. Raises BadInput."""
    place = cast.vantage(vantage, ids)
    if not cast.scenario.keeps(vantage) or (place.broker and not cast.scenario.keeps_passing):
        raise BadInput(
            f"What {vantage} saw of this run was not kept; run it again with `--malicious {vantage}`, or with "
            "transcript.keep set to 'all'."
        )
    records, seen = transcript(folder, cast, ids, place), sightings(folder) if place.broker else ()
    labels = told_labels(cast, ids) if told else None
    choice = told_choice(cast, ids) if chosen else None
    own, held = own_data(cast, ids, place), cast.held(ids, place)
    return observe(place, records, cast.public(ids), own, labels, held, choice, seen)


def transcript(folder: Path, cast: Cast, ids: Sequence[PeerId], place: Vantage) -> Iterator[Record]:
    """The files that hold anything for this vantage: a broken one of somebody else's is none of its business.

    Where everything is kept as it passed, dummies included, whoever only sees it pass is shown that.
    """
    stems = {peer: stem(name) for peer, name in zip(ids, cast.names, strict=True)}
    passes, passing = place.taps_wire or bool(place.carries), cast.scenario.keeps_passing
    members = None if passes and not passing else {stems[peer] for peer in place.controls}
    ended = {m["name"]: m["ended"] for m in read_json(folder / "summary.json")["peers"]}
    unfinished = {stem(name) for name, how in ended.items() if how != "finished"}
    if passes and passing:
        yield from read_transcript(passing_folder(folder), None, unfinished)
    if members is None or members:
        yield from read_transcript(folder / "transcript", members, unfinished)


def own_data(cast: Cast, ids: Sequence[PeerId], place: Vantage) -> Own:
    """The adversary knows its own data; labels are -1 where they are held by somebody else."""
    blind = cast.blind(ids, place)

    def own(peer: PeerId, round_: int) -> tuple[np.ndarray, np.ndarray]:
        if peer not in place.controls:
            raise LocalError("an attack asked for the data of a peer that it does not control")
        drawn = cast.drawn(ids.index(peer), round_)
        labels = cast.dataset.train_y[drawn]
        return cast.dataset.train_x[drawn], np.full_like(labels, -1) if peer in blind else labels

    return own


def told_labels(cast: Cast, ids: Sequence[PeerId]) -> Told:
    """Everybody's labels, in an order that does not say which picture is whose."""

    def told(peer: PeerId, round_: int) -> np.ndarray:
        labels = cast.dataset.train_y[cast.drawn(ids.index(peer), round_)]
        steps = 1 if cast.scenario.training.private else cast.scenario.training.local_steps
        parts = np.array_split(labels, steps)  # every step has as many
        return np.concatenate([_ordered(part) for part in parts])

    return told


def told_choice(cast: Cast, ids: Sequence[PeerId]) -> Told:
    """Everybody's choice of public pictures, by their places, step by step."""

    def told(peer: PeerId, round_: int) -> np.ndarray:
        return cast.chosen(ids.index(peer), round_)

    return told


def randomness(public: Public, name: str) -> np.random.Generator:
    """An attack's generator: named by the attack and by what is public, so that the same observation gives the same
    pictures from wherever it is made. Never by the run's seed: that names the victims' batches and their noise too.
    """
    start = hashlib.blake2b(public.initial.tobytes(), digest_size=16).hexdigest()
    return generator(0, "attack", name, start)


def _ordered(labels: np.ndarray) -> np.ndarray:
    """Labels (B,) from low to high; masks (B, H, W) by their bytes."""
    keys = [label.astype(">i8").tobytes() for label in labels]
    return labels[sorted(range(len(labels)), key=keys.__getitem__)]
