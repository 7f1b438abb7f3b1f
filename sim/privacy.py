"""What a run's differential privacy comes to: epsilon, for which delta, of what, against whom; or plainly none.

What is protected. Private training protects one example of one peer: whether its gradient was in the sums or left out
of all of them (adding or removing it; how many examples a peer has, and so the sampling rate, is public). The guards
protect a peer's whole update against any other it might have said, which is twice the norm it is clipped to: local
differential privacy.

Against whom. Everybody who sees all that a peer says, all other peers together included; where neighbours share noise
that cancels, everybody who sees all that all peers say, and knows all secrets of so many of them. What others say later
follows from what was said, and costs nothing more (post-processing); so do optimizers, codecs and mixing.

What is not covered. The training losses in the experimenter's own record. And whoever knows the scenario's seed, from
which a laboratory draws batches, noise and keys, can take all noise off again; in a mesh that others join, members draw
from the system's randomness.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx

from veilmesh.core import BadInput
from veilmesh.crypto.accounting import correlated_multiplier, gaussian_epsilon, prv_epsilon, rdp_epsilon
from veilmesh.sim.scenario import PrivateTraining
from veilmesh.swarm.guards.base import GUARDS
from veilmesh.swarm.guards.correlated_noise import CorrelatedNoise
from veilmesh.swarm.guards.private_update import PrivateUpdate
from veilmesh.tasks.work import sampling_rate

if TYPE_CHECKING:
    from veilmesh.sim.cast import Cast

__all__ = ["Guarantee", "privacy_figures", "privacy_of", "require_privacy"]

_NONE = "no differential privacy"
_EXAMPLE = "one example of one peer, there or left out (how many it has is public)"
_UPDATES = "all that one peer says in the whole run, against whatever else it might have said"
_ALL = "everybody who sees all that the peer says, all other members together"
_SEED = "who knows the scenario's seed can draw all noise, batches and keys again, and take the noise off"
_LARGEST = 1e4  # beyond it an epsilon says nothing, and accountants run out of numbers
_TIGHT = 30.0  # below it the PRV accountant's grid is small


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One guarantee: (epsilon, delta)-differential privacy of `protects`, against `against`.

    `epsilon_prv` is the PRV accountant's figure beside a Renyi one; `multiplier` the noise over the sensitivity that
    was counted, `steps` how many releases of one peer, each of a sample at `rate` (1: no sampling).
    """

    epsilon: float
    delta: float
    protects: str
    against: str
    mechanism: str
    accountant: str
    multiplier: float
    steps: int
    rate: float
    epsilon_prv: float | None = None

    def __str__(self) -> str:
        figure = f"epsilon = {self.epsilon:.4g}, delta = {self.delta:.3g}"
        return f"{figure}; protects {self.protects}; against {self.against}"


def privacy_of(cast: "Cast", rounds: int | None = None) -> list[Guarantee]:
    """What `rounds` trained rounds of each peer (None: as many as the scenario has) keep private: one guarantee for
    private training, one for each guard that has an accountant. Raises BadInput where opacus is missing."""
    rounds = cast.scenario.rounds if rounds is None else rounds
    training = cast.scenario.training.private
    found = [_of_training(cast, training, rounds)] if training else []
    guards = [guard.build(GUARDS) for guard in cast.scenario.guards]
    return found + [_of_guard(cast, g, rounds) for g in guards if isinstance(g, PrivateUpdate | CorrelatedNoise)]


def require_privacy(cast: "Cast") -> None:
    """Raises BadInput if the privacy that a scenario asks for has no figure: no opacus, or too little noise."""
    for guarantee in privacy_of(cast):
        if not guarantee.epsilon <= _LARGEST:
            raise BadInput(
                f"{guarantee.mechanism}: so little noise keeps nothing private (epsilon would be beyond "
                f"{_LARGEST:g}); raise its noise, lower rounds, or leave it out."
            )


def privacy_figures(cast: "Cast", trained: Mapping[int, int], unfinished: Sequence[int]) -> dict[str, Any]:
    """What a summary says: `epsilon` and `delta` of the first guarantee (None: there is none), and `privacy`, all of
    them and in words.

    trained: rounds that each member noted to have trained; a member in `unfinished` may have said one more.
    """
    rounds = max((n + (i in unfinished) for i, n in trained.items()), default=0)
    rounds = max([rounds, *(1 for i in unfinished if i not in trained)])
    found = privacy_of(cast, rounds)
    says = "; and ".join(map(str, found)) or _NONE
    return {
        "epsilon": found[0].epsilon if found else None,
        "delta": found[0].delta if found else None,
        "privacy": {
            "says": says,
            "guarantees": [asdict(guarantee) for guarantee in found],
            **({} if not found or cast.scenario.door.open else {"but": _SEED}),
        },
    }


def _of_training(cast: "Cast", private: PrivateTraining, rounds: int) -> Guarantee:
    training = cast.scenario.training
    multiplier, against = _watched(cast, private)
    rate = max(sampling_rate(len(shard), training.batch) for shard in cast.shards)  # the peer with the fewest examples
    steps = rounds * training.local_steps
    if rate == 1:
        epsilon, prv, accountant = gaussian_epsilon(multiplier, steps, private.delta), None, "Gaussian, exact"
    else:
        epsilon, accountant = rdp_epsilon(rate, multiplier, steps, private.delta), "RDP (opacus), Poisson sampling"
        prv = prv_epsilon(rate, multiplier, steps, private.delta) if epsilon <= _TIGHT else None
    about = (_EXAMPLE, against, "training.private", accountant, multiplier, steps, rate, prv)
    return Guarantee(epsilon, private.delta, *about)


def _of_guard(cast: "Cast", guard: PrivateUpdate | CorrelatedNoise, rounds: int) -> Guarantee:
    if isinstance(guard, CorrelatedNoise):
        (multiplier, against), name = _watched(cast, guard), "correlated-noise"
    else:
        (multiplier, against), name = (guard.noise, _ALL), "private-update"
    multiplier /= 2  # one update for another: the two are up to twice the norm apart
    epsilon = gaussian_epsilon(multiplier, rounds, guard.delta)
    return Guarantee(epsilon, guard.delta, _UPDATES, against, f"guard {name}", "Gaussian, exact", multiplier, rounds, 1)


def _watched(cast: "Cast", noise: PrivateTraining | CorrelatedNoise) -> tuple[float, str]:
    """The noise multiplier that counts, and against whom."""
    if not noise.pair:
        return noise.noise, _ALL
    graph = nx.Graph(cast.edges)
    curious = max(noise.colluders, len(cast.tampering))
    multiplier = correlated_multiplier(graph, noise.noise, noise.pair, curious)
    if multiplier == noise.noise:
        return multiplier, f"{_ALL} (so many may collude, or so little is shared, that only its own noise counts)"
    others = f"any {curious} of the peers together" if curious > 1 else "any one peer" if curious else "no peer"
    return multiplier, f"everybody who sees all that all peers say, and {others} with all secrets held there"
