"""Lies made from what the others said: ALIE, IPM and dissensus, for every victim's neighbourhood by itself.

All of them are computed from what this peer heard in the round, as far as the victim hears it too, and from its own
honest model. The papers give the adversary every honest model; on a complete graph that is the same, on a sparse one it
is not. In a star a client hears nobody, so it takes the hub's last step, repeated, for the crowd's.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from veilmesh.attacks.tampers.base import TAMPERS
from veilmesh.attacks.tampers.liar import Heard, Lie
from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Vector

__all__ = ["Alie", "Dissensus", "Ipm", "alie_z"]


@TAMPERS.register("alie")
@dataclass(frozen=True)
class Alie(Lie):
    """A little is enough: say the honest mean minus `z` standard deviations, so that some honest models look worse.

    Baruch et al. 2019, section 3; minus as there and in He et al. 2022, where ByzFL adds 1.5 of them. Without `z`, the
    paper's: the most that still has enough honest models further out (0 for 2 of 8: then it only says the mean).
    """

    z: Annotated[float, Field(allow_inf_nan=False)] | None = None

    rushing: ClassVar[bool] = True

    def claim(self, heard: Heard, rng: np.random.Generator) -> Vector:
        models = _crowd(heard)
        spread = models.std(axis=0, ddof=1) if len(models) > 1 else np.zeros(models.shape[1])
        lie: Vector = (models.mean(axis=0) - self._strength(heard) * spread).astype(np.float32)
        return lie

    def _strength(self, heard: Heard) -> float:
        row = heard.insider.rows.get(heard.victim)
        group = set(row) if row else set(heard.insider.kit.order) - {heard.victim}
        return alie_z(len(group), len(group & heard.insider.malicious)) if self.z is None else self.z


def alie_z(n: int, f: int) -> float:
    """The paper's z for `f` liars of `n`: Phi^-1((n - f - s) / (n - f)), s = floor(n / 2 + 1) - f; within [0, 3.1]."""
    supporters = n // 2 + 1 - f
    share = (n - f - supporters) / max(n - f, 1)
    return NormalDist().inv_cdf(min(max(share, 0.5), 0.999))


@TAMPERS.register("ipm")
@dataclass(frozen=True)
class Ipm(Lie):
    """Inner product manipulation: say -`epsilon` times the honest peers' mean update.

    Xie et al. 2020, "Fall of empires", section 3, on updates as there (He et al.'s code turns whole models around).
    Small epsilons hide among the honest; ByzFL's default is 2. Updates count from where this peer's own training began.
    """

    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5

    rushing: ClassVar[bool] = True

    def claim(self, heard: Heard, rng: np.random.Generator) -> Vector:
        step = _crowd(heard).mean(axis=0) - heard.start
        lie: Vector = (heard.start - self.epsilon * step).astype(np.float32)
        return lie


@TAMPERS.register("dissensus")
@dataclass(frozen=True)
class Dissensus(Lie):
    """Pull every victim away from its neighbours: x_v - epsilon sum_j W_vj (x_j - x_v) / sum_b W_vb.

    He et al. 2022, equation 2: j are the victim's honest neighbours, b its malicious ones; with epsilon 1 the weighted
    mean leaves the victim where it is. Another lie for everybody, which only a mesh without a server has a place for.
    """

    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    rushing: ClassVar[bool] = True

    def check(self, strategy: str, classes: int, server: bool = False) -> None:
        super().check(strategy, classes, server)
        if strategy != "gossip":
            raise BadInput("dissensus sets neighbours against each other, and a star has none; take gossip.")

    def claim(self, heard: Heard, rng: np.random.Generator) -> Vector:
        victim = heard.others.get(heard.victim, heard.honest).astype(np.float64)  # an accomplice, or one not heard
        row, bad = heard.insider.rows[heard.victim], heard.insider.malicious
        pull = np.zeros_like(victim)
        for peer, model in heard.others.items():
            if peer != heard.victim and peer in row:
                pull += row[peer] * (model.astype(np.float64) - victim)
        ours = sum(weight for peer, weight in row.items() if peer in bad)
        lie: Vector = (victim - self.epsilon / ours * pull).astype(np.float32)
        return lie


def _crowd(heard: Heard) -> np.ndarray:
    """What the victim's neighbourhood looks like from here: (n, d) honest models, this peer's own among them."""
    row = heard.insider.rows.get(heard.victim)
    near = [model for peer, model in heard.others.items() if row is None or peer in row]
    return np.stack([heard.honest, *near]).astype(np.float64)
