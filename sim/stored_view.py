"""Views in files, and attacks on them: what an attack guesses there rests on the view alone, and nobody scores it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.stored import from_bytes, to_bytes
from veilmesh.attacks.view import Attack, Guess, View
from veilmesh.core import BadInput
from veilmesh.sim.audit import built, open_run, save_picture
from veilmesh.sim.easier import needs_telling
from veilmesh.sim.observation import observation, randomness
from veilmesh.sim.scenario import Choice

__all__ = ["read_view", "replay", "store_view", "write_view"]


def store_view(run: Path, vantage: str, out: Path, *, told: bool = False) -> View:
    """Write what is seen of a finished run from `vantage` to the file `out`; `told`: with the labels of everybody's
    pictures, which an attack may then be given. Raises BadInput."""
    cast, ids = open_run(run)
    view = observation(run, cast, ids, vantage, told=told)
    write_view(view, out)
    return view


def write_view(view: View, path: Path) -> None:
    """Write a view to a file. Raises BadInput if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_bytes(view))
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); give another file.") from None


def read_view(path: Path) -> View:
    """The view in a file. Raises BadInput, one sentence, if there is none, or it is damaged."""
    try:
        return from_bytes(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); write a view with `veilmesh view`.") from None


def replay(view: View, choice: Choice, out: Path) -> list[Guess]:
    """What an attack guesses from a view alone, as it would on the run itself; written to the folder `out`.

    There: `guesses.json` (victims, rounds, the attacker's own losses), `guesses.npz` (pictures (B, C, H, W) and labels,
    as `0-pictures`, `0-labels`, ...), and pictures/. Raises BadInput.
    """
    labels = view.public.picture_labels
    attack = built(choice, per_pixel=labels is not None and labels.ndim > 1)
    _tell(attack, view)
    guesses = sorted(attack.run(view, randomness(view.public, choice.name)), key=lambda g: (g.victim, g.round, g.loss))
    try:
        _write(guesses, choice, view, out)
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}); give another folder.") from None
    return guesses


def _tell(attack: Attack, view: View) -> None:
    if needs_telling(attack) and view.told is None:
        raise BadInput("This view does not hold the victims' labels; write it with `veilmesh view --told`.")


def _write(guesses: Sequence[Guess], choice: Choice, view: View, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {f"{at}-pictures": guess.pictures for at, guess in enumerate(guesses)}
    arrays |= {f"{at}-labels": guess.labels for at, guess in enumerate(guesses)}
    np.savez(out / "guesses.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes the first for allow_pickle
    names = {peer: f"peer{at}" for at, peer in enumerate(view.public.peers)}
    said = [_said(guess) for guess in guesses]
    for guess, words in zip(guesses, said, strict=True):
        start = f"{choice.name}-{names.get(guess.victim, 'other')}-{guess.round}"
        words["files"] = [save_picture(out, f"{start}-{at}.png", x) for at, x in enumerate(guess.pictures)]
    content = {"attack": choice.name, "options": choice.options, "guesses": said}
    (out / "guesses.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _said(guess: Guess) -> dict[str, Any]:
    labels = guess.labels.tolist() if guess.labels.ndim == 1 else None
    return {
        "victim": guess.victim,
        "round": guess.round,
        "loss": float(guess.loss),
        "labels": labels,
        "among": list(guess.among),
    }
