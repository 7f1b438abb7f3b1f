"""What passive attackers of split mode have in common: rounds of what they saw, public pictures, and guesses."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from veilmesh.attacks.seen.smashed import Smashed, observe_smashed
from veilmesh.attacks.view import Guess, View
from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId

__all__ = ["Seen", "guess_of", "public_pictures", "rounds_seen"]

_FEWEST = 8


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What was seen of one data owner in one round: activations (B, ...) of all its steps, and labels (B,) if seen."""

    head: PeerId
    round: int
    activations: Tensor
    labels: NDArray[np.int64] | None


def rounds_seen(view: View, targets: int, first: int | None) -> list[Seen]:
    """At most `targets` rounds of each data owner from `first` on, or, with None, the last ones; in order of data owner
    and round. Raises BadInput where nothing was seen."""
    found: dict[PeerId, dict[int, list[Smashed]]] = defaultdict(lambda: defaultdict(list))
    for one in observe_smashed(view):
        found[one.head][one.step // view.public.local_steps].append(one)
    seen = []
    for head in sorted(found):
        rounds = sorted(r for r in found[head] if first is None or r >= first)
        chosen = rounds[-targets:] if first is None else rounds[:targets]
        seen += [_seen(head, round_, found[head][round_]) for round_ in chosen]
    return seen


def _seen(head: PeerId, round_: int, parts: Sequence[Smashed]) -> Seen:
    labels = [part.labels for part in parts if part.labels is not None]
    activations = torch.from_numpy(np.concatenate([part.activations for part in parts]))
    return Seen(head, round_, activations, np.concatenate(labels) if len(labels) == len(parts) else None)


def public_pictures(view: View) -> tuple[Tensor, Tensor | None]:
    """Public pictures (N, C, H, W), and their classes (N,) if they are known. Raises BadInput where there are few."""
    pictures, labels = view.public.pictures, view.public.picture_labels
    if pictures is None or len(pictures) < _FEWEST:
        raise BadInput(f"This attack learns from public pictures, {_FEWEST} or more; this task has fewer.")
    classes = None if labels is None or labels.ndim > 1 else torch.from_numpy(labels.astype(np.int64))
    return torch.from_numpy(np.ascontiguousarray(pictures)), classes


def guess_of(
    seen: Seen, pictures: Tensor, misfits: Tensor, labels: NDArray[np.int64] | None, **details: object
) -> Guess:
    """The guess at a round: pictures (B, C, H, W) with their misfits (B,), whose mean is the loss. Labels that were
    seen are given as such; otherwise those inferred, (B,), or none."""
    known = seen.labels if seen.labels is not None else labels
    shown: NDArray[np.float32] = pictures.detach().clamp(0, 1).numpy().astype(np.float32)
    said = np.zeros(0, np.int64) if known is None else known.astype(np.int64)
    return Guess(seen.head, seen.round, shown, said, float(misfits.mean()), details)
