"""What an adversary learned from a run: observe from its vantage, let an attack guess, and only then look at the truth.

The truth (which private pictures a peer used in which round) is recomputed from the scenario; it is in no file of the
run, and the attack that runs here is given a View and a generator.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from veilmesh.attacks.extraction.base import EXTRACTIONS
from veilmesh.attacks.inference.base import INFERENCES, registry_of
from veilmesh.attacks.view import ATTACKS, Attack, Guess
from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId
from veilmesh.sim.cast import Cast
from veilmesh.sim.easier import easier, needs_choice, needs_telling
from veilmesh.sim.extraction import extract
from veilmesh.sim.figures import figures, label_figures, ordered_figures, row
from veilmesh.sim.identify import Gallery, identify
from veilmesh.sim.membership import infer
from veilmesh.sim.observation import observation, randomness
from veilmesh.sim.record import read_json, write_json
from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.sim.score import score, shown_for
from veilmesh.swarm.sharing.base import SHARINGS

__all__ = ["attach", "audit", "built", "open_run", "save_picture"]


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
    _require_readable(choice, cast.scenario)
    if registry_of(choice.name) is INFERENCES:
        helped = easier(cast.scenario, choice.build(INFERENCES))
        return infer(folder, cast, ids, choice, vantage) | {"easier": helped}
    if registry_of(choice.name) is EXTRACTIONS:
        return extract(folder, cast, ids, choice, vantage) | {"easier": []}
    attack = built(choice, cast.dataset.per_pixel)
    place = cast.vantage(vantage, ids)
    begin = time.process_time()
    hidden = place.controls - (cast.blind(ids, place) if attack.reconstructs == "labels" else frozenset())
    told, chosen = needs_telling(attack), needs_choice(attack)
    view = observation(folder, cast, ids, vantage, told=told, chosen=chosen)
    guesses = _one_each(list(attack.run(view, randomness(view.public, choice.name))), cast, ids, hidden)
    seconds = time.process_time() - begin
    judge = _Judge(folder, cast, tuple(ids), choice, vantage)
    return {
        "attack": choice.name,
        "options": choice.options,
        "vantage": vantage,
        "guesses_made": len(guesses),
        "cpu_seconds": round(seconds, 3),
        "easier": easier(cast.scenario, attack, [guess.round for guess in guesses]),
        **_labels(cast, ids, attack, guesses if not needs_telling(attack) else ()),
        **(judge.pictures(guesses) if attack.reconstructs == "pictures" else {}),
    }


def _require_readable(choice: Choice, scenario: Scenario) -> None:
    """Raises BadInput where an attack reads models, and what this run shared is none."""
    attack, shared = registry_of(choice.name).get(choice.name), scenario.sharing.name
    if SHARINGS.get(shared).like_model or shared in getattr(attack, "sharings", ()):
        return
    known = [name for name in ATTACKS.names() if shared in getattr(ATTACKS.get(name), "sharings", ())]
    raise BadInput(
        f"Attack {choice.name!r} reads models, and this run shared {shared!r} in their place; take "
        f"{' or '.join(known) or 'a run that shares models'}."
    )


def built(choice: Choice, per_pixel: bool) -> Attack:
    """The attack of that name, with its options. Raises BadInput, also where it cannot work on labels of pixels."""
    attack: Attack = choice.build(ATTACKS)
    if per_pixel and not getattr(type(attack), "per_pixel", False):
        raise BadInput(
            f"Attack {choice.name!r} reconstructs labelled pictures, and this task labels pixels; take another attack, "
            "or another task."
        )
    return attack


def _one_each(guesses: Sequence[Guess], cast: Cast, ids: Sequence[PeerId], hidden: frozenset[PeerId]) -> list[Guess]:
    """At most one guess for each round and victim that is not `hidden`, of at most as many pictures as there were: with
    more of them, the scorer's matching would choose by the truth. Kept is what the attack itself holds for better: the
    guess with its lowest loss, and of that the first pictures.
    """
    kept: dict[tuple[int, int], Guess] = {}
    for guess in sorted(guesses, key=lambda g: g.loss):
        if not hidden.intersection((guess.victim, *guess.among)):
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


def attach(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Put an attack's row into the run's summary, in place of an earlier one of the same attack and vantage."""
    summary = read_json(folder / "summary.json")
    key = ("attack", "options", "vantage")
    others = [a for a in summary["attacks"] if any(a[k] != result[k] for k in key)]
    summary["attacks"] = [*others, dict(result)]
    write_json(folder / "summary.json", summary)
    return dict(summary)


@dataclass(frozen=True, slots=True)
class _Judge:
    """Holds the truth against the guesses of one attack from one vantage."""

    folder: Path
    cast: Cast
    ids: tuple[PeerId, ...]
    choice: Choice
    vantage: str

    def pictures(self, guesses: Sequence[Guess]) -> dict[str, Any]:
        """The figures of all private pictures behind the guesses, and a row for each that was guessed."""
        found = [self._rows(guess) for guess in guesses]
        rows = [each for batch in found for each in batch]
        clusters = [at for at, batch in enumerate(found) for _ in batch]
        return figures(rows, clusters) | {"guesses": [each for each in rows if each["guess"]]}

    def _rows(self, guess: Guess) -> list[dict[str, Any]]:
        """A row for each private picture of a batch; one that the attack left out scores what gray scores."""
        data = self.cast.dataset
        owners, drawn = _behind(self.cast, self.ids, guess)
        truth, labels, public = data.train_x[drawn], data.train_y[drawn], data.public_x
        scores = score(guess, truth, labels, public)
        partner = {s.truth: s.guess for s in scores if s.guess is not None}
        guessed = np.array([s.guessed for s in scores])
        told = identify(shown_for(guess, partner, truth), guessed, drawn, Gallery(data.train_x, data.train_y), public)
        rows = []
        for scored, known in zip(scores, told, strict=True):
            paths = {"truth": "", "guess": "", "floor": ""}
            if scored.guess is not None and scored.nearest is not None:
                shown = (truth[scored.truth], guess.pictures[scored.guess], public[scored.nearest])
                start = self._name(guess, scored.truth)
                paths = {k: save_picture(self.folder, f"{start}-{k}.png", x) for k, x in zip(paths, shown, strict=True)}
            label = None if data.per_pixel else int(labels[scored.truth])
            rows.append(row(self.cast.names[owners[scored.truth]], label, scored, known) | paths)
        return rows

    def _name(self, guess: Guess, place: int) -> str:
        """What a guess's pictures are called: the same attack with other options has others."""
        options = json.dumps(self.choice.options, sort_keys=True)
        slug = f"{self.choice.name}-{hashlib.blake2b(options.encode(), digest_size=3).hexdigest()}-{self.vantage}"
        name = f"{slug}-{self.cast.names[self.ids.index(guess.victim)]}-{guess.round}-{place}"
        return name.replace(":", "")


def _labels(cast: Cast, ids: Sequence[PeerId], attack: Attack, guesses: Sequence[Guess]) -> dict[str, Any]:
    """What the labels that were inferred are worth; of pixels they are not counted. An attack that is `ordered` says of
    each example which label it has."""
    if cast.dataset.per_pixel:
        return {"labels_right": None}
    said = [(cast.dataset.train_y[_behind(cast, ids, g)[1]], g.labels) for g in guesses if len(g.labels)]
    if getattr(type(attack), "ordered", False):
        scores = [(guess.details.get("scores"), guess.details.get("batches")) for guess in guesses if len(guess.labels)]
        return ordered_figures(said, scores, cast.dataset.public_y)
    return label_figures(said, cast.dataset.public_y, cast.dataset.classes)


def save_picture(folder: Path, name: str, picture: np.ndarray) -> str:
    """Write one picture (C, H, W) to the pictures/ of `folder`; its path from there."""
    path = folder / "pictures" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(pixels[0]) if len(pixels) == 1 else Image.fromarray(np.moveaxis(pixels, 0, -1))
    image.save(path, optimize=True)
    return f"pictures/{name}"
