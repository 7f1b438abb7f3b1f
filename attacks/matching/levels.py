"""What a message of levels says of its own scale: which coordinates are how far from one level to the next.

Everything is read off the decoded message itself, in whatever unit it is: where the numbers are not the levels of such
a codec, the answer is None.
"""

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

from veilmesh.attacks.matching.likelihood import Intervals
from veilmesh.crypto.codecs.nf4 import VALUES

__all__ = ["basis", "flat", "nearest_intervals", "steps"]

_SAME = 1e-3  # relative difference below which magnitudes are one level
_FAINT = 1e-3  # of the largest singular value: below it there is rounding only


def flat(x: Tensor, chunk: int) -> bool:
    """Whether all coordinates (d,) of a chunk that are not zero are equally large."""
    rows = _rows(x.abs(), chunk)
    high = rows.max(1).values
    low = torch.where(rows > 0, rows, high[:, None]).min(1).values
    return bool((high - low <= _SAME * high).all())


def steps(x: Tensor, chunk: int) -> Tensor | None:
    """From one level to the next, for every coordinate (d,) of a message whose chunks have evenly spaced levels; zero
    where a whole chunk is."""
    rows = _rows(x.abs(), chunk)
    high = rows.max(1, keepdim=True).values
    gaps = torch.cat([torch.zeros_like(high), rows.sort(1).values], 1).diff(dim=1)
    step = torch.where(gaps > _SAME * high, gaps, torch.inf).min(1, keepdim=True).values
    step = torch.where(high > 0, step, torch.ones_like(step))
    levels = rows / step
    if bool((levels.max() > 128) | ((levels - levels.round()).abs().max() > 0.05)):
        return None
    return torch.where(high > 0, step, 0.0).expand_as(rows).reshape(-1)[: x.numel()]


def nearest_intervals(x: Tensor, block: int) -> Intervals | None:
    """What NormalFloat-4 says of a vector whose message was `x` (d,), each block of coordinates with its own scale."""
    scale = _rows(x.abs(), block).max(1).values.repeat_interleave(block)[: x.numel()]
    values = torch.from_numpy(VALUES).to(x)
    unit = x / scale.clamp_min(1e-30)
    level = torch.bucketize(unit, (values[1:] + values[:-1]) / 2)
    if bool((unit - values[level]).abs().max() > _SAME):
        return None
    between = (values[1:] + values[:-1]) / 2
    low, high = torch.cat([values[:1], between]), torch.cat([between, values[-1:]])
    return Intervals(low[level] * scale, high[level] * scale, float(x.square().sum().clamp_min(1e-30)))


def basis(x: Tensor, rank: int, columns: int) -> Tensor | None:
    """The orthonormal columns (m, r) that a low-rank message `x` (d,) was projected onto; None where it has a higher
    rank. The last row of the matrix may be cut short: it is solved for by itself."""
    size = x.numel()
    n = min(columns or isqrt(max(size - 1, 0)) + 1, size)
    whole = size // n
    rank = max(1, min(rank, whole, n))
    matrix, rest = x[: whole * n].view(whole, n).double(), x[whole * n :].double()
    _, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    if bool((singular[rank:] > _FAINT * singular[0]).any()):
        return None
    left = matrix @ right[:rank].mT
    if rest.numel():
        left = torch.cat([left, torch.linalg.lstsq(right[:rank, : rest.numel()].mT, rest[:, None]).solution.mT])
    found: Tensor = torch.linalg.qr(left).Q
    return found.to(x.dtype)


def _rows(x: Tensor, chunk: int) -> Tensor:
    """(d,) as (ceil(d / chunk), chunk), filled up with zeros."""
    return functional.pad(x, (0, -x.numel() % chunk)).view(-1, chunk)
