"""What stands between a gradient and its observer, as everybody knows it: how loud the noise is, which distance fits.

A guard and a codec are public, so an attacker can put candidates through them too: `Defence.likelihood` compares what
a codec would say, `Defence.noise` says how much of an update is noise, and `Defence.fit` whether a guess explains the
message as well as the truth would. Messages that are not what the codec wrote, such as sums, or later differences of
public copies, fall back to the cosine.
"""

from dataclasses import dataclass
from math import hypot, inf, sqrt
from typing import Final, Literal, TypeAlias, TypeVar

import numpy as np
import torch

from veilmesh.attacks.matching.distance import Cosine, Distance
from veilmesh.attacks.matching.levels import basis, flat, nearest_intervals, steps
from veilmesh.attacks.matching.likelihood import (
    Clipped,
    Hinge,
    Intervals,
    Projected,
    Rounded,
    Signs,
    Ternary,
    Thresholded,
    Together,
)
from veilmesh.attacks.matching.recipe import Case
from veilmesh.attacks.view import Public
from veilmesh.core import generator
from veilmesh.crypto.codecs import CODECS, Codec, Vector, decode, encode
from veilmesh.crypto.codecs.chunks import CHUNK
from veilmesh.crypto.codecs.fewbits import EightBitZstd, FourBit, TwoBit
from veilmesh.crypto.codecs.lowrank import LowRank
from veilmesh.crypto.codecs.nf4 import NormalFloat4
from veilmesh.crypto.codecs.quantised import EightBit
from veilmesh.crypto.codecs.sign import Sign
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.crypto.codecs.topk_packed import TopKPacked
from veilmesh.swarm.guards.base import GUARDS, Guard, clipped
from veilmesh.swarm.guards.clip import Clip
from veilmesh.swarm.guards.correlated_noise import CorrelatedNoise
from veilmesh.swarm.guards.noise import Noise
from veilmesh.swarm.guards.private_update import PrivateUpdate

__all__ = ["Defence", "Variant"]

Variant: TypeAlias = Literal[
    "cosine", "masked", "thresholded", "selected", "intervals", "rounded", "signs", "hinge", "ternary", "projected"
]
"""How a candidate is compared: as if the message were the gradient; where it said something; or as the codec asks."""

C = TypeVar("C")

_QUIET: Final = 0.1  # noise, as a share of the update, above which exact levels mean nothing
_LEAST: Final = 1e-2  # of the noise: a smaller update behind it cannot be told from none
_BETA: Final = 4.0  # how sharp a sign is, in mean magnitudes: 4 and 8 do alike, 1 and 2 worse
_TERNARY: Final = 3.0
_ROUNDED: Final = 0.3  # weight of the likelihood of rounding, beside the cosine's
_LITTLE: Final = 0.1  # weight of what only helps


@dataclass(frozen=True, slots=True, eq=False)
class Defence:
    """The guards, in order, and the codec that updates go through before anybody sees them."""

    public: Public
    guards: tuple[Guard, ...]
    codec: Codec

    @classmethod
    def of(cls, public: Public) -> "Defence":
        """What `public` says, with everybody's defaults. Raises BadInput where a name is not known here."""
        return cls(public, tuple(GUARDS.build_from(named) for named in public.guards), CODECS.build_from(public.codec))

    def noise(self, case: Case) -> float:
        """The length of all noise in an update, over that of what it was added to. Where noise does not depend on the
        update, its length is that of the message, less the noise's."""
        unit = self.public.learning_rate * self.public.local_steps
        heard = float(case.gradient.norm()) * unit
        crowd = sqrt(max(1, len(case.observed.among)))  # of a mean, independent noise shrinks
        wide = sqrt(case.gradient.numel()) / crowd
        total = _ratio(self._of_training(case) * unit * wide, heard, self._longest(unit))
        for guard in self.guards:
            match guard:
                case Noise(ratio=ratio, std=None):
                    total = hypot(total, ratio / crowd * hypot(1.0, total))
                case Noise(std=std) if std is not None:
                    total = hypot(total, _ratio(std * wide, heard, inf))
                case PrivateUpdate(clip=clip, noise=noise):
                    total = hypot(total, _ratio(clip * noise * wide, heard, clip))
                case CorrelatedNoise(clip=clip, noise=noise, pair=pair):
                    spread = clip * hypot(noise, pair * sqrt(self._neighbours(case)))
                    total = hypot(total, _ratio(spread * wide, heard, clip))
        return total

    def variants(self, case: Case) -> tuple[Variant, ...]:
        """Which ways of comparing fit, the best first, as far as public pictures showed."""
        fitting = self.fitting(case)
        exact = ("intervals", "rounded", "thresholded")
        return tuple(v for v in fitting if v not in exact) if self.noise(case) > _QUIET else fitting

    def likelihood(self, case: Case, variant: Variant) -> Distance:
        """The distance called `variant`; the cosine where this message is none of those it is for."""
        plain = Cosine(case.gradient, case.mask(variant == "masked"))
        if variant in ("cosine", "masked") or variant not in self.fitting(case):
            return plain
        fitting = _distance(case, self.codec, variant)
        norms = [guard.norm for guard in self.guards if isinstance(guard, Clip)]
        unit = self.public.learning_rate * self.public.local_steps
        return Clipped(fitting, min(norms) / unit) if norms else fitting

    def fit(self, case: Case, update: Vector, seed: int) -> tuple[float, float]:
        """How well a candidate's `update` (d,) explains the message: the cosine of what would have been said of it to
        what was said; and what that would be if the candidate were the truth, with other noise and other rounding."""
        for guard in self.guards:
            update = clipped(update, guard.norm) if isinstance(guard, Clip) else update
        rng, size = generator(seed, "fit"), float(np.linalg.norm(update.astype(np.float64))) / sqrt(update.size)
        noisy = update + np.float32(self.noise(case) * size) * rng.standard_normal(update.size, dtype=np.float32)
        expected = self._said(case, update, None)
        return _cosine(expected, case.observed.update), _cosine(expected, self._said(case, noisy, rng))

    def _said(self, case: Case, update: Vector, rng: np.random.Generator | None) -> Vector:
        """What receivers read of an update (d,); without `rng` what they read on average."""
        if not np.isfinite(update).all():
            return np.zeros_like(update)
        fitting = self.fitting(case)
        if case.observed.said is not None and "selected" not in fitting:
            return update * case.observed.said
        if fitting == ("cosine",) or "projected" in fitting or (rng is None and "rounded" in fitting):
            return update
        return decode(encode(self.codec, update, rng or generator(0, "said")), update.size).values

    def fitting(self, case: Case) -> tuple[Variant, ...]:
        """Which ways of comparing make sense for this message, noise aside, the best first: those of the codec, if it
        wrote the message, and the cosine."""
        plain: tuple[Variant, ...] = ("cosine",) if case.said is None else ("masked", "cosine")
        if len(case.observed.among) > 1 or not bool(torch.isfinite(case.gradient).all()):
            return plain
        match self.codec:
            case Sign() if flat(case.gradient, CHUNK):
                return ("signs", "hinge", *plain)
            case TopK() | TopKPacked() if case.said is not None:
                return ("thresholded", "masked", "selected", "cosine")
            case TwoBit(unbiased=False) if flat(case.gradient, CHUNK):
                return ("ternary", *plain)
            case EightBit() | EightBitZstd() | FourBit() | TwoBit() if steps(case.gradient, CHUNK) is not None:
                return ("rounded", *plain)
            case NormalFloat4(block=block) if nearest_intervals(-case.gradient, block) is not None:
                return (*plain, "intervals")
            case LowRank() as codec if basis(case.gradient.cpu(), codec.rank, codec.columns) is not None:
                return ("projected", *plain)
        return plain

    def _of_training(self, case: Case) -> float:
        """Standard deviation of the noise of private training, in units of a gradient."""
        private = self.public.private
        if not private:
            return 0.0
        spread = hypot(private["noise"], private.get("pair", 0.0) * sqrt(self._neighbours(case)))
        return float(private["clip"] * spread / (self.public.batch * sqrt(self.public.local_steps)))

    def _longest(self, unit: float) -> float:
        """How long an update from private training can be without its noise."""
        return float(self.public.private.get("clip", np.inf)) * unit

    def _neighbours(self, case: Case) -> int:
        """How many peers share noise with the victim."""
        return len([peer for peer in self.public.weights.get(case.observed.victim, {}) if peer != case.observed.victim])


def _ratio(noise: float, heard: float, longest: float) -> float:
    """Noise of length `noise` over the length of what it was added to, which is `longest` at most."""
    if noise == 0:
        return 0.0
    left = sqrt(max(heard**2 - noise**2, (_LEAST * noise) ** 2))
    return noise / min(left, longest)


def _cosine(a: Vector, b: Vector) -> float:
    left, right = a.astype(np.float64), b.astype(np.float64)
    length = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / length if length > 0 else 0.0


def _distance(case: Case, codec: Codec, variant: Variant) -> Distance:
    """A fitting distance, for a message that was found to be one of its kind."""
    seen, on = case.gradient, case.gradient.device
    match variant:
        case "signs":
            return Signs(seen.sign(), _BETA, weight=case.mask())
        case "hinge":
            return Together([(1.0, Hinge(seen.sign())), (_LITTLE, Cosine(seen, case.mask()))])
        case "ternary":
            return Ternary(seen.sign(), _TERNARY)
        case "selected" | "thresholded":
            assert case.said is not None  # it was one of the variants
            threshold = float(seen[case.said > 0].abs().min())
            if variant == "thresholded":
                return Thresholded(seen, case.said, threshold)
            chosen = Ternary(seen.sign() * case.said, _TERNARY, max(threshold, 1e-30))
            return Together([(_LITTLE, chosen), (1.0, Cosine(seen, case.said))])
        case "rounded":
            step = steps(seen, CHUNK)
            assert step is not None
            if isinstance(codec, TwoBit):
                return Rounded(seen, step)
            # where levels are many the likelihood alone is a rough way to come near
            return Together([(1.0, Cosine(seen, case.mask())), (_ROUNDED, Rounded(seen, step, least=0.3))])
        case "intervals" if isinstance(codec, NormalFloat4):
            found = nearest_intervals(-seen, codec.block)  # its levels are those of the update, and not symmetrical
            assert found is not None
            return Intervals(-found.high, -found.low, found.energy)
        case "projected" if isinstance(codec, LowRank):
            columns = basis(seen.cpu(), codec.rank, codec.columns)
            assert columns is not None
            return Projected(seen, columns.to(on))
    return Cosine(seen, case.mask())
