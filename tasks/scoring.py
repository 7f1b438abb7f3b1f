"""What a network is worth on test pictures; every picture alike, or each class for what it counts."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from veilmesh.tasks.data.base import Labels
from veilmesh.tasks.work import Evaluated

__all__ = ["importance", "score"]

_CHUNK = 256  # test pictures in one forward pass


def importance(own: Labels, test: Labels, classes: int) -> NDArray[np.float64]:
    """What each class of the test pictures counts for, (classes,), for them to be such a mix as `own` labels are.

    Scores are then what a personal test set of that mix gives on average (Li et al. 2021, "Ditto", section 4: the
    benefit of each client's own distribution), and use all the test pictures there are.
    """
    mine, all_ = (np.bincount(labels.reshape(-1), minlength=classes) for labels in (own, test))
    counts = np.zeros(classes)
    there = all_ > 0
    counts[there] = (mine / mine.sum())[there] / (all_ / all_.sum())[there]
    return counts


@torch.inference_mode()
def score(
    forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, counts: NDArray[np.float64] | None = None
) -> Evaluated:
    """Accuracy and mean loss of `forward`, (B, C, H, W) to logits, on pictures `x`; of pixels, where `y` labels those.

    `counts` (classes,): what an example of each class counts for; None: one.
    """
    right, loss, total = 0.0, 0.0, 0.0
    each = None if counts is None else torch.from_numpy(counts)[y]
    for start in range(0, len(x), _CHUNK):
        part = slice(start, start + _CHUNK)
        logits = forward(x[part])
        if each is None:
            right += int((logits.argmax(1) == y[part]).sum())
            loss += float(functional.cross_entropy(logits, y[part], reduction="sum"))
            total += y[part].numel()
            continue
        right += float(((logits.argmax(1) == y[part]) * each[part]).sum())
        loss += float((functional.cross_entropy(logits, y[part], reduction="none") * each[part]).sum())
        total += float(each[part].sum())
    return Evaluated(right / total, loss / total)
