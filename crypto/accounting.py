"""The accountant of differential privacy: what epsilon some releases of Gaussian noise come to, for a given delta.

Everything here is in noise multipliers: the noise's standard deviation over the L2 sensitivity of what it is added to.
What the sensitivity is, and so what is protected, is for the caller to say (`sim/privacy.py` does).

Without subsampling the figures are exact and need no library. With it they come from opacus, an extra of this project;
it is imported when it is first asked, and where it is missing BadInput says so: a figure is never left out silently.
"""

import importlib
import math
import warnings
from itertools import combinations
from typing import Any

import networkx as nx
import numpy as np

from veilmesh.core import BadInput

__all__ = [
    "correlated_multiplier", "gaussian_delta", "gaussian_epsilon", "prv_epsilon", "rdp_epsilon", "require_opacus",
]  # fmt: skip

_ORDERS = [1 + x / 20 for x in range(1, 180)] + [float(x) for x in range(10, 64)] + [72.0, 96.0, 128.0, 256.0, 512.0]
_WORK = 2e9  # multiplications that the search over colluding sets may take


def gaussian_delta(epsilon: float, multiplier: float, steps: int = 1) -> float:
    """The least delta for which `steps` Gaussian mechanisms are (epsilon, delta)-differentially private together.

    Exact, for adaptive releases too: they are one mechanism of mu-Gaussian differential privacy, mu = sqrt(steps) /
    multiplier (Dong, Roth and Su 2019, corollaries 1 and 3; for one step Balle and Wang 2018, theorem 8).
    """
    mu = math.sqrt(steps) / multiplier
    a = _log_normal_cdf(mu / 2 - epsilon / mu)
    b = epsilon + _log_normal_cdf(-mu / 2 - epsilon / mu)
    return math.exp(a) * max(0.0, -math.expm1(b - a))


def gaussian_epsilon(multiplier: float, steps: int, delta: float) -> float:
    """The least epsilon of `steps` Gaussian mechanisms without subsampling: `gaussian_delta`, turned round.

    Rounded up, to nine figures. No steps, no loss: 0.
    """
    if not steps:
        return 0.0
    mu = math.sqrt(steps) / multiplier
    low, high = 0.0, mu * (mu / 2 + math.sqrt(2 * math.log(1 / delta)))  # zCDP's epsilon is never less
    while high - low > 1e-9 * (1 + high):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, multiplier, steps) > delta else (low, middle)
    return high


def rdp_epsilon(rate: float, multiplier: float, steps: int, delta: float) -> float:
    """An upper bound on epsilon after `steps` Gaussian mechanisms, each on a Poisson sample at `rate` in (0, 1].

    For adding or removing one example. Renyi differential privacy of the sampled Gaussian mechanism (Mironov, Talwar
    and Zhang 2019, theorem 11, which holds both for adding and for removing), turned into epsilon by Balle et al. 2020,
    theorem 21; both as opacus computes them. Not valid for batches of a fixed size, nor for shuffled epochs. Raises
    BadInput where opacus is missing.
    """
    if not steps:
        return 0.0
    analysis = require_opacus().analysis.rdp
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # of an order at the end of the list: a looser bound
        warnings.simplefilter("ignore")
        spent = analysis.compute_rdp(q=rate, noise_multiplier=multiplier, steps=steps, orders=_ORDERS)
        epsilon, _ = analysis.get_privacy_spent(orders=_ORDERS, rdp=spent, delta=delta)
    return max(0.0, float(epsilon))


def prv_epsilon(rate: float, multiplier: float, steps: int, delta: float) -> float | None:
    """The tighter figure of opacus's PRV accountant (Gopi, Lee and Wutschitz 2021); None where it cannot be computed.

    Its upper bound for removing one example. Beside `rdp_epsilon`, not in its place: which of adding and removing is
    worse may change under composition (Lebeda, Regehr, Kamath and Steinke 2024), and it looks at one of them.
    Raises BadInput where opacus is missing.
    """
    accountant = require_opacus().PRVAccountant()
    accountant.history = [(multiplier, rate, steps)]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            epsilon = float(accountant.get_epsilon(delta=delta)) if steps else 0.0
    except (RuntimeError, ValueError, FloatingPointError, OverflowError, IndexError):  # its grid would be too large
        return None
    return epsilon if math.isfinite(epsilon) else None


def require_opacus() -> Any:
    """opacus's accountants. Raises BadInput, naming the extra, where it is not installed."""
    try:
        return importlib.import_module("opacus.accountants")
    except ImportError:
        raise BadInput(
            "The epsilon of private training cannot be computed without opacus; install veilmesh[privacy], or leave "
            "out training.private."
        ) from None


def correlated_multiplier(graph: "nx.Graph[Any]", noise: float, pair: float, colluders: int) -> float:
    """The noise multiplier that one peer's release amounts to, where neighbours share noise of opposite signs.

    Everybody adds noise of its own, of multiplier `noise`, and for each neighbour noise of multiplier `pair` that the
    neighbour takes away again (DECOR: Allouah, Koloskova, El Firdoussi, Jaggi and Guerraoui 2024). An adversary that
    sees all releases, and all secrets of any `colluders` peers, is left with noise of covariance S = noise^2 I + pair^2
    L between the others, where L is the Laplacian of the graph without the colluders. A change of one honest peer's
    release by one sensitivity then moves a Gaussian by (S^-1)_ii^(1/2) standard deviations; the inverse of the largest
    of these, over peers and sets of colluders, is exact where the paper's theorem bounds it by the algebraic
    connectivity. Subsampling one peer's batch amplifies it as any other Gaussian mechanism: S^-1/2 is public.

    Between `noise`, if all neighbours of somebody may collude, and sqrt(n - colluders) times that, as `pair` grows on a
    graph that stays connected. Where there are too many sets to look at, `noise`, which always holds.
    """
    nodes, n = list(graph), len(graph)
    if not pair or colluders >= min((degree for _, degree in graph.degree()), default=0):
        return noise
    if math.comb(n, colluders) * n**3 > _WORK:
        return noise
    worst = 0.0
    for gone in combinations(nodes, colluders):
        honest = graph.subgraph([node for node in nodes if node not in gone])
        covariance = noise**2 * np.eye(n - colluders) + pair**2 * _laplacian(honest)
        worst = max(worst, float(np.linalg.inv(covariance).diagonal().max()))
    return 1 / math.sqrt(worst)


def _laplacian(graph: "nx.Graph[Any]") -> "np.ndarray[Any, Any]":
    adjacency = nx.to_numpy_array(graph, weight=None)
    return np.asarray(np.diag(adjacency.sum(axis=1)) - adjacency)


def _log_normal_cdf(x: float) -> float:
    """log Phi(x), down to where Phi itself underflows (Abramowitz and Stegun 26.2.12)."""
    if x > -30:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    t = x**-2
    return -(x**2) / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log(1 - t + 3 * t**2 - 15 * t**3)
