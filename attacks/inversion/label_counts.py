"""How often each class occurs in a batch, from the gradient of the last layer's bias: the published estimates.

For cross-entropy that gradient is g_c = mean_n p_nc - k_c / B, where k_c of the B examples carry label c. All here are
plain functions of numbers; where `labels.py` gets the numbers from is told there. Counts always add up to B.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "counts_by_expectation",
    "counts_by_impact",
    "counts_by_presence",
    "counts_by_restoration",
]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]


def counts_by_presence(evidence: Floats, batch: int) -> Labels:
    """Each class with a negative entry of `evidence` (K,) once, most negative first, and again in that order.

    With bias gradients this is iDLG (Zhao et al., arXiv 2001.02610), made for one example; with each class's smallest
    weight gradient it is Yin et al. (arXiv 2104.07586, eq. 7), made for batches without repetition. What either does
    with more examples than negative classes is ours.
    """
    order = np.argsort(evidence, kind="stable")
    present = [c for c in order if evidence[c] < 0] or [order[0]]
    return np.bincount([present[i % len(present)] for i in range(batch)], minlength=evidence.size).astype(np.int64)


def counts_by_impact(gradient: Floats, batch: int) -> Labels:
    """How often each class occurs, (K,), from a bias gradient (K,) of unknown scale.

    Negative entries occur; each occurrence is taken to move an entry by the mean m = sum of negative entries / B
    (Wainakh et al., arXiv 2105.09369, algorithm 1): take one of each negative class, most negative first, then again
    and again the smallest entry, adding -m to it. Their factor 1 + 1/K on m is left out.
    """
    rest = gradient.astype(np.float64).copy()
    counts = np.zeros(rest.size, np.int64)
    impact = rest[rest < 0].sum() / batch
    present = [c for c in np.argsort(rest, kind="stable") if rest[c] < 0][:batch]
    for step in range(batch):
        chosen = present[step] if step < len(present) else int(rest.argmin())
        counts[chosen] += 1
        rest[chosen] -= impact
    return counts


def counts_by_expectation(
    gradient: Floats, batch: int, expected: Floats, present: Mask | None = None, others: bool = True
) -> Labels:
    """How often each class occurs, (K,), from a bias gradient (K,) of known scale: k = B (expected - gradient).

    `expected` (K,): the mean probabilities that the network gives before it is trained further (the offset of LLG*,
    Wainakh et al.; over several local steps Geng et al., arXiv 2110.09074, and Dimitrov et al., TMLR 2022). Classes
    with a negative entry occur at least once, and so do those in `present` (K,); without `others` only those.
    """
    wanted = batch * (expected - gradient)
    if present is None or not present.any():
        return _rounded(wanted, gradient, batch, gradient < 0)
    return _rounded(wanted if others else np.where(present, wanted, -np.inf), gradient, batch, present)


def counts_by_restoration(gradient: Floats, batch: int, given: Floats) -> Labels:
    """How often each class occurs, (K,), from K + 1 linear equations: iLRG.

    `given` (K, K): row c is what the network says of an example of class c, as far as the attacker can tell; then
    sum_c k_c given_cj - k_j = B g_j for every j, and sum_c k_c = B, solved by the pseudoinverse (Ma et al., ICLR 2023).
    """
    classes = gradient.size
    system = np.vstack([given.T - np.eye(classes), np.ones(classes)])
    wanted = np.linalg.pinv(system) @ np.append(batch * gradient, batch)
    return _rounded(wanted, gradient, batch, gradient < 0)


def _rounded(wanted: Floats, gradient: Floats, batch: int, sure: Mask) -> Labels:
    """`wanted` (K,) as counts that sum to B, by largest remainder; classes in `sure` occur, the most negative gradients
    first where there are more of them than examples."""
    counts = np.zeros(gradient.size, np.int64)
    counts[[c for c in np.argsort(gradient, kind="stable") if sure[c]][:batch]] = 1
    for _ in range(batch - int(counts.sum())):
        counts[int((wanted - counts).argmax())] += 1
    return counts
