"""A layer of bins, as anybody finds it in a network: which rows compute the same functional, and in what order.

Nothing is taken from the payload: the layer is asked with black, smooth and noisy pictures. Rows of an honest network
answer differently from each other; rows of an imprint differ by a constant. Whoever crafted the model can ask before
the round begins; when an update comes, what is left is arithmetic: differences of rows, and one product with the few
functionals.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad

from veilmesh.attacks.network import LinearLayer, Network
from veilmesh.core import generator

__all__ = ["Bins", "bins_of", "effects", "rows_of"]

Floats = NDArray[np.float64]
Pictures = NDArray[np.float32]

_SAME = 1 - 1e-6  # cosine of two rows' answers from which on they compute the same functional
_PROBES = 24
_MOST_GROUPS = 128  # an honest layer has as many as rows, and need not be looked through
_ROUNDING = 1e-5  # of the layer's largest answer: where rounding decides


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """`layer` is fed offset + factor * picture; `groups` are its rows by functional, the first to become active first.

    `sparse`: each row is active in its own bin only; else in its own and all later ones of its group. Row i of group g
    answers a picture x with `slopes`[i] * (`functionals`[g] @ x) + `levels`[i]; (out,), (groups, C*H*W), (out,).
    """

    layer: LinearLayer
    offset: Floats
    factor: Floats
    groups: tuple[NDArray[np.int64], ...]
    sparse: bool
    functionals: Floats
    slopes: Floats
    levels: Floats

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row (bins,) that each bin begins with; bins are counted group by group."""
        return np.concatenate(self.groups)

    def contents(self, said: NDArray[np.floating], bins: NDArray[np.int64] | None = None) -> Floats:
        """What belongs to `bins` (n,), or to each of them, (n, ...), of what the gradient says of the rows, (out, ...):
        what a row says and its successor does not."""
        rows = self.rows
        bins = np.arange(len(rows)) if bins is None else bins
        found = said[rows[bins]].astype(np.float64)
        if not self.sparse:
            last = np.isin(bins, np.cumsum([len(group) for group in self.groups]) - 1)
            found[~last] -= said[rows[bins[~last] + 1]]
        return found

    def answers(self, x: Floats) -> Floats:
        """The layer's answers (n, out) to pictures (n, C*H*W)."""
        found = np.broadcast_to(self.levels, (len(x), len(self.levels))).copy()
        for group, values in zip(self.groups, self.functionals @ x.T, strict=True):
            found[:, group] += values[:, None] * self.slopes[group]
        return found

    def places(self, answers: Floats) -> NDArray[np.int64]:
        """The bin of each picture in each group, (n, groups), or -1, from the layer's answers (n, out)."""
        found, first = [], 0
        for group in self.groups:
            mine = answers[:, group]
            active = np.abs(mine) < 1 if self.sparse else mine > 0
            last = len(group) - 1 - active[:, ::-1].argmax(axis=1)
            found.append(np.where(active.any(axis=1), first + last, -1))
            first += len(group)
        return np.stack(found, axis=1)

    def on_edge(self, answers: Floats, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether bins `one` and `other` (n,) are neighbours, and rounding may have put the picture in either."""
        rows = np.concatenate(self.groups)
        deciding = answers[np.arange(len(one)), rows[np.maximum(one, other)]]
        from_edge = np.abs(np.abs(deciding) - 1) if self.sparse else np.abs(deciding)
        near = from_edge < _ROUNDING * np.abs(answers).max(initial=0.0)
        return np.asarray((np.abs(one - other) == 1) & (other >= 0) & near, np.bool_)


def bins_of(network: Network) -> Bins | None:
    """The layer of bins in the network as it is loaded; None where there is none."""
    after = [module for _, module in network.module.named_modules() if not list(module.children())]
    for layer in network.linear_layers():
        if layer.bias is None or layer.module.out_features < 4 or (scale := network.picture_scale(layer)) is None:
            continue
        place = next(i for i, module in enumerate(after) if module is layer.module)
        sparse = place + 1 < len(after) and isinstance(after[place + 1], nn.Hardtanh)
        groups = _groups(rows_of(network, layer, _probes(network.shape)))
        if groups is not None:
            offset, factor = (part.astype(np.float64) for part in scale)
            return Bins(layer, offset, factor, groups, sparse, *_computed(layer, offset, factor, groups))
    return None


def _computed(
    layer: LinearLayer, offset: Floats, factor: Floats, groups: tuple[NDArray[np.int64], ...]
) -> tuple[Floats, Floats, Floats]:
    """`functionals`, `slopes` and `levels` of a layer, whatever it makes of its parameters."""
    module = deepcopy(layer.module).double().requires_grad_(False)
    black = torch.from_numpy(offset)[None].requires_grad_(True)
    found, slopes = [], np.zeros(layer.module.out_features)
    answers = module(black)
    for group in groups:
        (weight,) = torch.autograd.grad(answers[0, int(group[0])], black, retain_graph=True)
        moved = (module(black + weight) - answers).detach().numpy()[0]
        slopes[group] = moved[group] / float(weight.square().sum())
        found.append(weight.numpy()[0] * factor)
    return np.stack(found), slopes, answers.detach().numpy()[0]


def rows_of(network: Network, layer: LinearLayer, pictures: Pictures) -> Floats:
    """The layer's answers (n, out) to `pictures` (n, C, H, W)."""
    with torch.no_grad(), _Tap(layer) as tap:
        network.module(torch.from_numpy(pictures))
    return tap.seen.double().numpy()


def effects(network: Network, layer: LinearLayer, pictures: Pictures, rows: NDArray[np.int64]) -> Floats:
    """The derivative (n, K) of each picture's loss, were its label k, by the layer's answer in its one of `rows`."""
    x, way = torch.from_numpy(pictures), torch.zeros(len(pictures), layer.module.out_features)
    way[torch.arange(len(pictures)), torch.from_numpy(rows)] = 1.0
    try:
        logits, slope = _forward(network, layer, x, way)
    except NotImplementedError:  # a step of its own of that network has no forward derivative
        logits, slope = _backward(network, layer, x, way)
    expected = (logits.double().softmax(1) * slope.double()).sum(1, keepdim=True)
    found: Floats = (expected - slope.double()).numpy()
    return found


def _forward(network: Network, layer: LinearLayer, x: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """The network's answers (n, K), and how they change as the layer's go `way` (n, out): in one pass for all K."""
    with torch.no_grad(), forward_ad.dual_level(), _Tap(layer, way):
        logits, slope = forward_ad.unpack_dual(network.module(x))  # type: ignore[no-untyped-call]  # torch's own
        return logits, torch.zeros_like(logits) if slope is None else slope


def _backward(network: Network, layer: LinearLayer, x: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """The same, in one pass for each of the K."""
    with _Tap(layer) as tap:
        logits: Tensor = network.module(x)
    grads = [torch.autograd.grad(one.sum(), tap.seen, retain_graph=True)[0] for one in logits.unbind(1)]
    return logits.detach(), torch.stack([(grad * way).sum(1) for grad in grads], 1)


class _Tap:
    """Keeps a layer's output while it is open; `way` (n, out): a direction that it then moves in."""

    seen: Tensor

    def __init__(self, layer: LinearLayer, way: Tensor | None = None) -> None:
        self._layer = layer
        self._way = way

    def __enter__(self) -> "_Tap":
        self._handle = self._layer.module.register_forward_hook(lambda _, inputs, output: self._keep(output))
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _keep(self, output: Tensor) -> Tensor:
        self.seen = output
        return output if self._way is None else forward_ad.make_dual(output, self._way)  # type: ignore[no-untyped-call]  # torch's own


def _probes(shape: tuple[int, int, int]) -> Pictures:
    """Black, and pictures that differ in brightness, in what is smooth and in what is not."""
    rng = generator(0, "imprint-probes")
    _, height, width = shape
    ramp = np.linspace(-1, 1, height)[:, None] * rng.uniform(-1, 1, (_PROBES, 1, 1, 1))
    slope = np.linspace(-1, 1, width) * rng.uniform(-1, 1, (_PROBES, 1, 1, 1))
    level = rng.uniform(0.3, 0.7, (_PROBES, 1, 1, 1))
    pictures = level + 0.15 * (ramp + slope) + 0.15 * rng.uniform(-1, 1, (_PROBES, *shape))
    pictures[0] = 0
    return pictures.clip(0, 1).astype(np.float32)


def _groups(answers: Floats) -> tuple[NDArray[np.int64], ...] | None:
    """Rows (out,) by functional, in the order of their thresholds, of answers (n, out) of which the first is to black.

    None unless nearly all rows share theirs with two others or more."""
    moved = answers[1:] - answers[0]
    lengths = np.linalg.norm(moved, axis=0)
    unit = moved / np.maximum(lengths, 1e-30)
    groups = [group for group in islice(_alike(unit, lengths > 0), _MOST_GROUPS) if len(group) > 2]
    if sum(len(group) for group in groups) < 0.9 * answers.shape[1]:
        return None
    thresholds = -answers[0] / np.maximum(lengths, 1e-30)
    return tuple(group[np.argsort(thresholds[group], kind="stable")] for group in groups)


def _alike(unit: Floats, rest: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    rest = rest.copy()
    while rest.any():
        first = int(rest.argmax())
        same = rest & (unit.T @ unit[:, first] > _SAME)
        same[first] = True
        yield np.flatnonzero(same)
        rest &= ~same
