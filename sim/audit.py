"""What an adversary learned from a run: observe from its vantage, let an attack guess, and only then look at the truth.

The truth (which private pictures a peer used in which round) is recomputed from the scenario; it is in no file of the
run, and the attack that runs here is given a View and a generator.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from veilmesh.attacks.view import ATTACKS, Attack, Guess, Own, Public, Vantage, observe
from veilmesh.core import BadInput, LocalError, generator
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record, read_transcript
from veilmesh.sim.cast import Cast, stem
from veilmesh.sim.record import read_json, write_json
from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.sim.score import Scored, score

__all__ = ["audit", "attach", "open_run", "transcript"]

SUCCESS_DB = (20, 25, 30)


def open_run(folder: Path) -> tuple[Cast, list[PeerId]]:
    """A finished run's cast, and its members' peer ids. Raises BadInput if `folder` is not a run."""
    run = read_json(folder / "run.json")
    try:
        scenario, members = run["scenario"], run["members"]
        ids = [PeerId(m["id"]) for m in members]
    except (KeyError, TypeError):
        raise BadInput(f"{folder / 'run.json'} is not the record of a run; run it again.") from None
    return Cast.prepare(Scenario.parse(scenario, str(folder / "run.json"))), ids


def audit(folder: Path, cast: Cast, ids: Sequence[PeerId], choice: Choice, vantage: str) -> dict[str, Any]:
    """Run one attack on a finished run from `vantage`; its row for the summary. Raises BadInput.

    Pictures (the private one, the guess, the nearest public one) are written to the run's pictures/ folder.
    """
    attack: Attack = choice.build(ATTACKS)
    if cast.dataset.per_pixel:
        raise BadInput("The attacks here reconstruct labelled pictures; this task labels pixels; take another one.")
    place = cast.vantage(vantage, ids)
    if not cast.scenario.keeps(vantage):
        raise BadInput(
            f"What {vantage} saw of this run was not kept; run it again with `--malicious {vantage}`, or with "
            "transcript.keep set to 'all'."
        )
    begin = time.process_time()
    view = observe(place, transcript(folder, cast, ids, place), cast.public(ids), _own(cast, ids, place))
    guesses = _one_each(list(attack.run(view, _randomness(view.public, choice.name))), cast, ids, place)
    seconds = time.process_time() - begin
    return {
        "attack": choice.name,
        "options": choice.options,
        "vantage": vantage,
        "guesses_made": len(guesses),
        "cpu_seconds": round(seconds, 3),
        **_labels(cast, ids, guesses),
        **(_pictures(folder, cast, ids, choice, vantage, guesses) if attack.reconstructs == "pictures" else {}),
    }


def _randomness(public: Public, name: str) -> np.random.Generator:
    """An attack's generator: named by the attack and by what is public, so that the same observation gives the same
    pictures from wherever it is made. Never by the run's seed: that names the victims' batches and their noise too.
    """
    start = hashlib.blake2b(public.initial.tobytes(), digest_size=16).hexdigest()
    return generator(0, "attack", name, start)


def _own(cast: Cast, ids: Sequence[PeerId], place: Vantage) -> Own:
    """The adversary knows its own data."""

    def own(peer: PeerId, round_: int) -> tuple[np.ndarray, np.ndarray]:
        if peer not in place.controls:
            raise LocalError("an attack asked for the data of a peer that it does not control")
        drawn = cast.drawn(ids.index(peer), round_)
        return cast.dataset.train_x[drawn], cast.dataset.train_y[drawn]

    return own


def _one_each(guesses: Sequence[Guess], cast: Cast, ids: Sequence[PeerId], place: Vantage) -> list[Guess]:
    """At most one guess for each victim and round, of at most as many pictures as there were: with more of them, the
    scorer's matching would choose by the truth. Kept is what the attack itself holds for better: the guess with its
    lowest loss, and of that the first pictures.
    """
    kept: dict[tuple[int, int], Guess] = {}
    for guess in sorted(guesses, key=lambda g: g.loss):
        if not place.controls.intersection((guess.victim, *guess.among)):
            kept.setdefault((ids.index(guess.victim), guess.round), guess)
    chosen = [guess for _, guess in sorted(kept.items(), key=lambda item: item[0])]
    counts = [len(_behind(cast, ids, guess)[1]) for guess in chosen]
    return [
        replace(guess, pictures=guess.pictures[:count])
        for guess, count in zip(chosen, counts, strict=True)
        if count  # a Poisson sample may be empty
    ]


def _behind(cast: Cast, ids: Sequence[PeerId], guess: Guess) -> tuple[list[int], np.ndarray]:
    """Whose pictures are behind a guess, and which: (B,) each, members by number. Behind a sum, everybody's in it."""
    members = [ids.index(peer) for peer in guess.among or (guess.victim,)]
    drawn = [cast.drawn(member, guess.round) for member in members]
    return [m for m, one in zip(members, drawn, strict=True) for _ in one], np.concatenate(drawn)


def transcript(folder: Path, cast: Cast, ids: Sequence[PeerId], place: Vantage) -> Iterator[Record]:
    """The files that hold anything for this vantage: a broken one of somebody else's is none of its business."""
    stems = {peer: stem(name) for peer, name in zip(ids, cast.names, strict=True)}
    members = None if place.taps_wire or place.carries else {stems[peer] for peer in place.controls}
    ended = {m["name"]: m["ended"] for m in read_json(folder / "summary.json")["peers"]}
    unfinished = {stem(name) for name, how in ended.items() if how != "finished"}
    return read_transcript(folder / "transcript", members, unfinished)


def attach(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Put an attack's row into the run's summary, in place of an earlier one of the same attack and vantage."""
    summary = read_json(folder / "summary.json")
    key = ("attack", "options", "vantage")
    others = [a for a in summary["attacks"] if any(a[k] != result[k] for k in key)]
    summary["attacks"] = [*others, dict(result)]
    write_json(folder / "summary.json", summary)
    return dict(summary)


def _pictures(
    folder: Path, cast: Cast, ids: Sequence[PeerId], choice: Choice, vantage: str, guesses: Sequence[Guess]
) -> dict[str, Any]:
    """The figures of all private pictures behind the guesses, and a row for each that was guessed."""
    rows = [row for guess in guesses for row in _judge(folder, cast, ids, choice, vantage, guess)]
    return _figures(rows) | {"guesses": [row for row in rows if row["guess"]]}


def _judge(
    folder: Path, cast: Cast, ids: Sequence[PeerId], choice: Choice, vantage: str, guess: Guess
) -> list[dict[str, Any]]:
    """A row for each private picture of a batch; one that the attack left out scores what gray scores."""
    owners, drawn = _behind(cast, ids, guess)
    truth, labels = cast.dataset.train_x[drawn], cast.dataset.train_y[drawn]
    public = cast.dataset.public_x
    rows = []
    for scored in score(guess, truth, labels, public):
        paths = {"truth": "", "guess": "", "floor": ""}
        if scored.guess is not None and scored.nearest is not None:
            name = f"{_slug(choice, vantage)}-{cast.names[ids.index(guess.victim)]}-{guess.round}-{scored.truth}"
            start = name.replace(":", "")
            shown = (truth[scored.truth], guess.pictures[scored.guess], public[scored.nearest])
            paths = {k: _save(folder, f"{start}-{k}.png", x) for k, x in zip(paths, shown, strict=True)}
        rows.append(_row(cast.names[owners[scored.truth]], int(labels[scored.truth]), scored) | paths)
    return rows


def _slug(choice: Choice, vantage: str) -> str:
    """A name for an attack's pictures: the same attack with other options has others."""
    options = json.dumps(choice.options, sort_keys=True)
    return f"{choice.name}-{hashlib.blake2b(options.encode(), digest_size=3).hexdigest()}-{vantage}"


def _row(victim: str, label: int, scored: Scored) -> dict[str, Any]:
    names = (
        "round", "psnr", "ssim", "best_floor", "gain", "floor_grey", "floor_mean", "floor_nearest", "ssim_floor",
        "ssim_gain", "label_ok", "loss",
    )  # fmt: skip
    figures = {name: getattr(scored, name) for name in names}
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
    return {"victim": victim, "label": label, "guessed_label": scored.label, **rounded}


def _labels(cast: Cast, ids: Sequence[PeerId], guesses: Sequence[Guess]) -> dict[str, Any]:
    """The share of private labels that were told rightly, in whatever order; and the share that is right without any
    information, by the public pictures' classes alone."""
    right, blind, total = 0, 0, 0
    for guess in guesses:
        if not len(guess.labels):
            continue
        _, drawn = _behind(cast, ids, guess)
        truth = np.bincount(cast.dataset.train_y[drawn], minlength=cast.dataset.classes)
        said = np.bincount(guess.labels[: len(drawn)], minlength=cast.dataset.classes)
        right += int(np.minimum(truth, said).sum())
        blind += int(np.minimum(truth, _usual(cast, len(drawn))).sum())
        total += len(drawn)
    return {"labels_right": right / total, "labels_floor": blind / total} if total else {"labels_right": None}


def _usual(cast: Cast, count: int) -> np.ndarray:
    """How often each class would be among `count` pictures that are like the public ones: (K,), rounded to sum."""
    share = np.bincount(cast.dataset.public_y, minlength=cast.dataset.classes) / len(cast.dataset.public_y)
    usual = np.floor(count * share).astype(np.int64)
    usual[np.argsort(usual - count * share, kind="stable")[: count - usual.sum()]] += 1
    return usual


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One attack's figures over all private pictures behind its guesses, those it left out included.

    "best" is picked by the truth: the attacker cannot know which one it is. "chosen" is what it would pick itself: the
    picture of the guess with the lowest loss of its own (in a batch, the middle one of that guess's pictures).
    """
    guessed = sum(bool(r["guess"]) for r in rows)
    if not guessed:  # gray for all of them would be no figure of the attack's
        names = ("psnr", "ssim", "gain", "floor")
        none = {f"{n}_{which}": None for n in names for which in ("best", "median")}
        return {"pictures": len(rows), "guessed": 0, "gain_highest": None} | none
    best = max(rows, key=lambda r: r["psnr"])
    middle = {name: median(r[name] for r in rows) for name in ("psnr", "ssim", "gain", "best_floor")}
    trusted = [r for r in rows if r["loss"] == min(r["loss"] for r in rows)]
    return {
        "pictures": len(rows),
        "guessed": guessed,
        "psnr_best": best["psnr"],
        "ssim_best": best["ssim"],
        "gain_best": best["gain"],
        "gain_highest": max(r["gain"] for r in rows),  # of any picture: the best by PSNR may be one with a high floor
        "floor_best": best["best_floor"],
        "psnr_median": middle["psnr"],
        "ssim_median": middle["ssim"],
        "gain_median": middle["gain"],
        "floor_median": middle["best_floor"],
        "psnr_chosen": median(r["psnr"] for r in trusted),
        "gain_chosen": median(r["gain"] for r in trusted),
        "floors": {name: median(r[f"floor_{name}"] for r in rows) for name in ("grey", "mean", "nearest")},
        "success": {str(db): sum(r["psnr"] >= db for r in rows) / len(rows) for db in SUCCESS_DB},
    }


def _save(folder: Path, name: str, picture: np.ndarray) -> str:
    path = folder / "pictures" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(pixels[0]) if len(pixels) == 1 else Image.fromarray(np.moveaxis(pixels, 0, -1))
    image.save(path, optimize=True)
    return f"pictures/{name}"
