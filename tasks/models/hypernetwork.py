"""A hypernetwork: a small network that generates another one's parameters theta from a peer's embedding v.

theta = h(v; phi): a hidden layer z = relu(U v + c), and for every generated tensor a linear head W z + b. All but the
network's last layer is generated; that layer, the classifier psi, belongs to the peer. What peers exchange is phi, one
flat vector (HyperFL: Guo et al. 2025; its numbers begin otherwise here, see `initial_phi`).

Full heads make phi about as many times larger than theta as the hidden layer is wide. `rank` makes every head a product
of two narrow matrices; `chunk` has one head for all, which generates theta piece by piece, each from v and an embedding
of the piece (von Oswald et al. 2020, "Continual learning with hypernetworks", section 2.2).

It is no network that a scenario could name: a sharing scheme learns with it, and whoever attacks the scheme needs the
same description, which follows from what everybody knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from veilmesh.core import BadInput, generator
from veilmesh.core.registry import name_and_options
from veilmesh.tasks.models.base import Shape
from veilmesh.tasks.models.build import build_model
from veilmesh.tasks.work import Vector

__all__ = ["HyperOptions", "Hypernetwork", "hypernetwork", "hypernetwork_of", "initial_phi", "own_parts"]

Parts: TypeAlias = dict[str, Tensor]
Row: TypeAlias = tuple[str, tuple[int, ...], int]
Level: TypeAlias = tuple[float, float]

_FIXED_SPREAD = 0.05  # of what a chunked head adds to a parameter that begins the same everywhere: scales of a norm
_MOST = 1 << 28  # numbers in phi


@dataclass(frozen=True)
class HyperOptions:
    """`embedding`: length of v; `hidden`: width of z; `rank`: of every head, 0: full; `chunk`: how many numbers one
    head generates at a time, 0: every tensor has its own; `head_bias`: whether heads have a bias."""

    embedding: int = 64
    hidden: int = 128
    rank: int = 0
    chunk: int = 0
    head_bias: bool = True


@dataclass(frozen=True, eq=False)
class Hypernetwork:
    """What is public about a hypernetwork: which tensors it generates, and where in phi its parts lie.

    theta of a tensor is its centre (one for a norm's scales, zero nearly everywhere else) plus what its head gives:
    `heads.NAME.weight` (n, hidden) times z, or `heads.NAME.left` (n, rank) times `heads.NAME.right` (rank, hidden)
    times z, plus `heads.NAME.bias` (n,). In chunks: row j of `chunks` (count, embedding) stands behind v, and
    `head.weight` (chunk, hidden), `head.bias` (chunk,) give numbers j chunk .. (j + 1) chunk of theta, times the spread
    that their tensor begins with in units of the `typical` one. Before all that come `mlp.weight` (hidden, embedding,
    or twice that in chunks) and `mlp.bias` (hidden,).
    """

    options: HyperOptions
    network: nn.Module  # its own numbers do not matter, but for those neither generated nor private: a frozen backbone
    shapes: Mapping[str, tuple[int, ...]]  # of the generated tensors, then of the private ones
    levels: Mapping[str, Level]  # centre and spread that each of them begins with
    names: tuple[str, ...]  # of the generated tensors
    own: tuple[str, ...]  # of the private ones: the classifier's weight and bias
    layout: tuple[Row, ...]

    @property
    def generated(self) -> int:
        """How many numbers theta has."""
        return sum(prod(self.shapes[name]) for name in self.names)

    @property
    def private(self) -> int:
        """How many numbers psi has."""
        return sum(prod(self.shapes[name]) for name in self.own)

    @property
    def size(self) -> int:
        """How many numbers phi has."""
        _, shape, offset = self.layout[-1]
        return offset + prod(shape)

    @property
    def typical(self) -> float:
        """The root mean square of what theta begins with: a chunk may hold parts of several tensors."""
        squares = (prod(self.shapes[name]) * self.levels[name][1] ** 2 for name in self.names)
        return float((sum(squares) / self.generated) ** 0.5)

    def parts(self, phi: Tensor) -> Parts:
        """The parts of phi (d,) by name, as views: differentiable."""
        pieces = torch.split(phi, [prod(shape) for _, shape, _ in self.layout])
        return {name: piece.view(shape) for (name, shape, _), piece in zip(self.layout, pieces, strict=True)}

    def hidden(self, phi: Tensor, v: Tensor) -> Tensor:
        """z (hidden,) of the embedding v (embedding,); in chunks one row a chunk, (count, hidden)."""
        return self._hidden(self.parts(phi), v)

    def heads(self, phi: Tensor, z: Tensor) -> Parts:
        """theta by name, from `hidden`'s z."""
        return self._heads(self.parts(phi), z)

    def generate(self, phi: Tensor, v: Tensor) -> Parts:
        """theta by name, differentiable in phi (d,) and in v (embedding,)."""
        parts = self.parts(phi)
        return self._heads(parts, self._hidden(parts, v))

    def forward(self, theta: Parts, psi: Parts, x: Tensor) -> Tensor:
        """Logits of pictures x (B, C, H, W) in [0, 1], by the generated extractor and the private classifier."""
        logits: Tensor = functional_call(self.network, {**theta, **psi}, (x,))
        return logits

    def _hidden(self, parts: Parts, v: Tensor) -> Tensor:
        if self.options.chunk:
            chunks = parts["chunks"]
            v = torch.cat([v.expand(len(chunks), -1), chunks], dim=1)
        return functional.relu(functional.linear(v, parts["mlp.weight"], parts["mlp.bias"]))

    def _heads(self, parts: Parts, z: Tensor) -> Parts:
        if self.options.chunk:
            return self._from_chunks(functional.linear(z, parts["head.weight"], parts.get("head.bias")))
        return {
            name: (_head(parts, f"heads.{name}", z) + self.levels[name][0]).view(self.shapes[name])
            for name in self.names
        }

    def _from_chunks(self, chunks: Tensor) -> Parts:
        flat = chunks.reshape(-1)[: self.generated]
        pieces = torch.split(flat, [prod(self.shapes[name]) for name in self.names])
        typical = self.typical
        return {
            name: (self.levels[name][0] + (self.levels[name][1] or _FIXED_SPREAD) / typical * piece).view(
                self.shapes[name]
            )
            for name, piece in zip(self.names, pieces, strict=True)
        }


def hypernetwork(options: HyperOptions, model: Mapping[str, Any], shape: Shape, classes: int) -> Hypernetwork:
    """The hypernetwork for the network that `model` (its name and options) describes.

    Raises BadInput where nothing would be left to generate, or too much.
    """
    network = build_model(*name_and_options(model), shape, classes, 0)
    own = _classifier(network, str(model["name"]))
    names = [name for name, _ in network.named_parameters() if name not in own]
    if not names:
        raise BadInput(f"model {model['name']!r} has one layer only, which stays private; take one with more.")
    return hypernetwork_of(options, network, tuple(names), own)


def hypernetwork_of(
    options: HyperOptions, network: nn.Module, names: tuple[str, ...], own: tuple[str, ...]
) -> Hypernetwork:
    """The hypernetwork that generates the tensors `names` of `network`, at least one, whose tensors `own` stay private;
    what else it has stays as it is. Raises BadInput where too much would be generated, and on options that clash."""
    if options.rank and options.chunk:
        raise BadInput("Heads are either of low rank or generate chunks; set rank or chunk, not both.")
    network.requires_grad_(False)
    there = dict(network.named_parameters())
    shapes = {name: tuple(there[name].shape) for name in (*names, *own)}
    rows = _layout(options, {name: shapes[name] for name in names})
    if rows[-1][2] + prod(rows[-1][1]) > _MOST:
        raise BadInput(f"The heads would have {rows[-1][2]:,} numbers; set rank or chunk, or take a smaller network.")
    levels = {name: _level(there[name]) for name in shapes}
    return Hypernetwork(options, network, shapes, levels, names, own, rows)


def initial_phi(net: Hypernetwork, seed: int) -> Vector:
    """What everybody begins with, (d,), drawn from the public seed.

    Heads are scaled so that theta of a drawn v begins as large as the network itself would (Chang, Flokas, Lipson
    2020, "Principled weight initialization for hypernetworks"); torch's own beginning, which the authors' code has,
    makes every tensor equally large, whatever its fan-in. Biases of heads begin at zero.
    """
    rng = generator(seed, "hypernetwork")
    pieces = [
        (spread * 3**0.5 * rng.uniform(-1, 1, prod(shape)) if spread else np.zeros(prod(shape))).astype(np.float32)
        for (_, shape, _), spread in zip(net.layout, _spreads(net), strict=True)
    ]
    return np.concatenate(pieces)


def own_parts(net: Hypernetwork, private_seed: int) -> tuple[Tensor, Parts]:
    """v (embedding,), standard normal, and psi by name, as the network's own last layer would begin."""
    v = generator(private_seed, "embedding").standard_normal(net.options.embedding).astype(np.float32)
    rng = generator(private_seed, "classifier")
    psi = {}
    for name in net.own:
        centre, spread = net.levels[name]
        drawn = centre + spread * 3**0.5 * rng.uniform(-1, 1, net.shapes[name])
        psi[name] = torch.from_numpy(drawn.astype(np.float32))
    return torch.from_numpy(v), psi


def _head(parts: Parts, name: str, z: Tensor) -> Tensor:
    bias = parts.get(f"{name}.bias")
    if f"{name}.weight" in parts:
        return functional.linear(z, parts[f"{name}.weight"], bias)
    return functional.linear(functional.linear(z, parts[f"{name}.right"]), parts[f"{name}.left"], bias)


def _layout(options: HyperOptions, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Row, ...]:
    inputs = options.embedding * (2 if options.chunk else 1)
    parts: list[tuple[str, tuple[int, ...]]] = [
        ("mlp.weight", (options.hidden, inputs)),
        ("mlp.bias", (options.hidden,)),
    ]
    if options.chunk:
        count = -(-sum(map(prod, shapes.values())) // options.chunk)
        parts += [("chunks", (count, options.embedding)), ("head.weight", (options.chunk, options.hidden))]
        parts += [("head.bias", (options.chunk,))] * options.head_bias
    for name, shape in () if options.chunk else shapes.items():
        parts += _head_parts(options, f"heads.{name}", prod(shape))
    offsets = np.cumsum([0, *(prod(shape) for _, shape in parts)]).tolist()
    return tuple((name, shape, offset) for (name, shape), offset in zip(parts, offsets, strict=False))


def _head_parts(options: HyperOptions, name: str, size: int) -> list[tuple[str, tuple[int, ...]]]:
    bias = [(f"{name}.bias", (size,))] * options.head_bias
    if options.rank:
        return [(f"{name}.left", (size, options.rank)), (f"{name}.right", (options.rank, options.hidden)), *bias]
    return [(f"{name}.weight", (size, options.hidden)), *bias]


def _spreads(net: Hypernetwork) -> list[float]:
    """The standard deviation that each part of phi begins with."""
    inputs = dict((name, shape) for name, shape, _ in net.layout)["mlp.weight"][1]
    first = (3 * inputs) ** -0.5  # torch's own for a linear layer
    length = (net.options.hidden * (inputs + 1) * first**2 / 2) ** 0.5  # of z, for a standard normal v
    return [_spread(net, name, first, length) for name, _, _ in net.layout]


def _spread(net: Hypernetwork, name: str, first: float, length: float) -> float:
    kind = name.rsplit(".", 1)[-1]
    if name.startswith("mlp."):
        return first
    if name == "chunks":
        return 1.0
    if kind == "bias":
        return 0.0
    if name == "head.weight" or kind == "right":
        return (net.typical if kind == "weight" else 1) / length
    level = net.levels[name.removeprefix("heads.").rsplit(".", 1)[0]][1]
    return level / length if kind == "weight" else level / net.options.rank**0.5


def _level(tensor: Tensor) -> Level:
    """The centre and the spread that a tensor begins with: where all are alike, that number and none."""
    values = tensor.double()
    if float(values.min()) == float(values.max()) and float(values.min()) in (0.0, 1.0):
        return float(values.min()), 0.0
    return 0.0, float(values.square().mean().sqrt())


def _classifier(network: nn.Module, name: str) -> tuple[str, ...]:
    """The parameters of the network's last layer. Raises BadInput where that is neither linear nor a convolution."""
    layers = [(path, layer) for path, layer in network.named_modules() if list(layer.parameters(recurse=False))]
    path, last = layers[-1]
    if not isinstance(last, nn.Linear | nn.Conv2d):
        raise BadInput(f"model {name!r} does not end in a linear layer, which would be a peer's own; take another.")
    prefix = f"{path}." if path else ""
    return tuple(prefix + parameter for parameter, _ in last.named_parameters(recurse=False))
