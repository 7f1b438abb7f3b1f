"""How an inversion is put together, as data."""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Literal, Self, TypeAlias

from torch import Tensor

from veilmesh.attacks.matching.descent import Adam, Lbfgs
from veilmesh.attacks.matching.device import Device
from veilmesh.attacks.matching.distance import Distance
from veilmesh.attacks.matching.predict import Predictor
from veilmesh.attacks.matching.prior import Prior
from veilmesh.attacks.matching.space import Start
from veilmesh.attacks.network import Network
from veilmesh.attacks.seen.observed import Observed
from veilmesh.attacks.view import Public

__all__ = ["Case", "Labels", "Local", "Match", "Recipe", "said_only"]

Labels: TypeAlias = Literal["inferred", "searched", "told"]
"""Where labels come from: read off the update first; searched together with the pictures; or told (which has to be
granted, and is named in every table: no real attacker has them)."""
Local: TypeAlias = Literal["gradient", "unroll", "surrogate"]
"""How several local steps are taken: as one gradient at their start, step by step, or as one somewhere on the way."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One update to invert, and all that an attacker has prepared for it."""

    network: Network  # holds the parameters that training began from
    public: Public
    observed: Observed
    gradient: Tensor  # (d,) what was observed, as a gradient: minus update over rate and steps
    said: Tensor | None  # (d,) 1 where the message said something and 0 elsewhere; None: everywhere
    labels: Tensor | None  # (B, ...); None: searched
    count: int  # B, pictures behind the update

    @property
    def shows_labels(self) -> bool:
        """Whether anything was said of the last fully connected layer, which labels are read off."""
        layers = self.network.linear_layers()
        if self.said is None or not layers:
            return True
        return bool(self.said[layers[-1].weight].any()) or bool(layers[-1].bias and self.said[layers[-1].bias].any())

    def mask(self, said_only: bool = False) -> Tensor | None:
        """(d,) which coordinates are a gradient's at all, or with `said_only`, those of them that were said."""
        return self.network.exchanged_statistics(self.said if said_only else None)


Match: TypeAlias = Literal["auto", "all", "said"]
"""Which coordinates are matched: all, with zero for what was not said; only what was said; or whichever fits."""


def said_only(match: Match, case: Case) -> bool:
    """Whether only what was said counts: not where a codec left out what was small, which says something too."""
    return match == "said" if match != "auto" else not str(case.public.codec.get("name")).startswith("top-k")


DistanceFor: TypeAlias = Callable[[Case], Distance]
PriorsFor: TypeAlias = Callable[[Case], list[Prior]]
PredictorFor: TypeAlias = Callable[[Case], Predictor]
Clean: TypeAlias = Callable[[Network, Observed], Observed]


@dataclass(frozen=True, slots=True)
class Recipe:
    """An inversion, put together.

    Args:
        distance, priors: made for each update.
        descent: the way down.
        coarse: search pictures of so many times fewer rows and columns; 1: the pictures themselves.
        labels: where labels come from.
        local: how several local steps are taken.
        epochs: how often every picture was used in them, as the attacker takes it.
        start: how candidates begin.
        restarts: candidates for each update. `trial`: they first compete for a tenth of the iterations, and the best by
            its own loss goes on alone; without it all go all the way.
        targets: at most so many rounds of each victim. `first`: the earliest round to look at.
        across: solve the sums, or the mixing, of all rounds for single peers first.
        newton: Gauss-Newton steps at the end of every search, where pictures and network are small enough for them.
        arrived: the loss below which no other start is tried, by a descent that takes one after the other.
        half: let large networks of convolutions round their second derivatives to bfloat16, where that is faster.
        together: search the updates of all who began from the same parameters in one batch: faster where networks are
            small, but the last bits of a picture then depend on who else was seen.
        clean: takes off an update what others than the private pictures put on it, before labels are read off; None:
            nothing.
        predictor: of candidates' updates, where that is no matter of `local`; the label of a single picture is then
            tried out.
    """

    distance: DistanceFor
    priors: PriorsFor
    descent: Adam | Lbfgs
    coarse: int = 1
    labels: Labels = "inferred"
    local: Local = "gradient"
    epochs: int = 1
    start: Start = "noise"
    restarts: int = 1
    trial: bool = False
    targets: int = 1
    first: int = 0
    across: bool = False
    device: Device = "auto"
    newton: int = 0
    arrived: float = 0.0
    half: bool = False
    together: bool = False
    clean: Clean | None = None
    predictor: PredictorFor | None = None

    @classmethod
    def of(cls, attack: object, distance: DistanceFor, priors: PriorsFor, descent: Adam | Lbfgs) -> Self:
        """The recipe of an attack whose options are called as here: what it has no option for stays as it is."""
        optional = [field.name for field in fields(cls) if field.default is not MISSING]
        chosen = {name: getattr(attack, name) for name in optional if hasattr(attack, name)}
        return cls(distance, priors, descent, **chosen)
