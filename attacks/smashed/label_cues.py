"""Labels from gradients at a cut, by the published cues: the sign, the norm, the direction, and a clone of the top.

Each takes what was seen of one data owner, in order, and gives scores (B, K) for every micro-batch: the highest of a
row is the label that is guessed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from veilmesh.attacks.seen.smashed import Smashed, StageMap
from veilmesh.attacks.smashed.decoders import generator_of, redraw
from veilmesh.attacks.smashed.last_stage import above, candidates, jacobian
from veilmesh.attacks.view import Public
from veilmesh.core import BadInput

__all__ = ["by_clone", "by_cosine", "by_norm", "by_sign", "flat"]

Floats = NDArray[np.float64]

_MOST = 512  # public pictures
_MEMORY = 0.9  # of where a class' gradients pointed, from batch to batch


def flat(one: Smashed) -> Floats:
    """The gradients of a micro-batch (B, d). Raises BadInput where none were seen."""
    if one.gradients is None:
        raise BadInput("No gradients were seen at this boundary, and labels are read off gradients; take another one.")
    return one.gradients.reshape(len(one.gradients), -1).astype(np.float64)


def by_sign(public: Public, boundary: int, seen: Sequence[Smashed]) -> list[Floats]:
    """The only negative entry of p - y is the label's (Fu et al., USENIX Security 2022, section 4.1, "direct"). What is
    seen is J^T (p - y), solved by least squares, with the J of the stages above as they began."""
    module = above(public, boundary)
    found = []
    for one in seen:
        down = jacobian(module, one)[0].transpose(1, 0, 2)  # (B, K, d)
        found.append(-np.einsum("bd,bdk->bk", flat(one), np.linalg.pinv(down)))
    return found


def by_norm(public: Public, boundary: int, seen: Sequence[Smashed]) -> list[Floats]:
    """The rarer of two classes has the larger gradients (Li et al., ICLR 2022, arXiv 2102.08504, section 3.1): as many
    of the largest as it has of public labels are its. Raises BadInput for more classes."""
    if public.classes != 2:
        raise BadInput(f"Method 'norm' tells two classes apart, and this task has {public.classes}; take 'cosine'.")
    share = np.bincount(_known(public)[1], minlength=2) / len(_known(public)[1])
    rare = int(share[1] <= share[0])
    found = []
    for one in seen:
        norms = np.linalg.norm(flat(one), axis=1)
        count = int(round(float(share[rare]) * len(norms)))
        line = float(np.sort(norms)[len(norms) - count]) if count > 0 else float("inf")
        score = norms - line + 1e-12 * (norms >= line)
        found.append(np.stack([-score, score] if rare else [score, -score], axis=1) / 2)
    return found


def by_cosine(public: Public, boundary: int, seen: Sequence[Smashed], known: int) -> list[Floats]:
    """Gradients of one class point one way (Li et al., section 3.1, for two classes): clusters on the sphere, which are
    followed from batch to batch. They begin, and have their names, from `known` public pictures a class, through the
    whole network as it began."""
    centres = _unit(_public_gradients(public, boundary, known))
    found = []
    for one in seen:
        rows = _unit(flat(one))
        scores = rows @ centres.T
        nearest = scores.argmax(axis=1)
        found.append(scores)
        for k in np.unique(nearest):
            mean = rows[nearest == k].mean(axis=0)
            centres[k] = _MEMORY * centres[k] + (1 - _MEMORY) * mean
        centres = _unit(centres)
    return found


def by_clone(public: Public, boundary: int, seen: Sequence[Smashed], rng: np.random.Generator) -> list[Floats]:
    """The label whose gradient, through a clone of the stages above that begins at random, is nearest (Erdogan et al.,
    WPES 2022, UnSplit, arXiv 2108.09033, section 4.3). They look at the gradient of that stage's parameters, which its
    owner does not send here; so a clone's own weights have to be like the true ones."""
    module = above(public, boundary)
    redraw(module, generator_of(rng))
    found = []
    for one in seen:
        off = np.square(flat(one) - candidates(module, one).gradients).sum(axis=2)
        found.append(-off.T)
    return found


def _known(public: Public) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Public pictures and their labels. Raises BadInput where there are none."""
    if public.pictures is None or public.picture_labels is None or not len(public.pictures):
        raise BadInput(
            "Classes are named by public pictures with labels here, and this task has none; take another method."
        )
    return public.pictures, public.picture_labels


def _public_gradients(public: Public, boundary: int, known: int) -> Floats:
    """The mean direction of a class' gradients (K, d), before training."""
    pictures, labels = _known(public)
    mine = np.concatenate([np.flatnonzero(labels == k)[:known] for k in range(public.classes)])[:_MOST]
    stages = StageMap(public)
    x = torch.from_numpy(np.ascontiguousarray(pictures[mine]))
    with torch.no_grad():
        for stage in range(boundary):
            x = stages.load(stage, stages.initial(stage))(x)
    asked = Smashed(public.peers[0], boundary, 0, 0, 1, 1.0, x.numpy())
    gradients = candidates(above(public, boundary), asked).gradients
    rows = _unit(gradients[labels[mine], np.arange(len(mine))])
    means = [rows[labels[mine] == k].mean(axis=0) if (labels[mine] == k).any() else rows.mean(axis=0) * 0
             for k in range(public.classes)]  # fmt: skip
    return np.stack(means)


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-300))
