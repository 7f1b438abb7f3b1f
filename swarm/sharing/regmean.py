"""RegMean: peers share what a least-squares merge of their models needs, which is additive (Jin et al. 2023).

Theory of operation ("Dataless knowledge fusion by merging weights of language models", section 3.2). Of a linear layer
with inputs X_i at peer i, the weights that answer all peers' inputs as the peers' own weights do, in the sense of least
squares, are W = (sum G_i)^-1 (sum G_i W_i) with G_i = X_i^T X_i / N_i. So (G_i, G_i W_i) is shared in place of W_i: any
protocol that averages exactly merges in one round, in the clear or behind masks, and whoever solves has the merged
model. Convolutions are linear in their patches; all other parameters are averaged as they are.

A mean of such pairs is again one, so a gossip that has not converged yet gives a model too; and a peer's own pair gives
back its own model, so rounds may follow each other.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.core import LocalError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.swarm.sharing.base import SHARINGS, Learner, Own, Setting
from veilmesh.swarm.sharing.whole_model import WholeModel, network
from veilmesh.tasks.work import Evaluate, Train, Trained

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

__all__ = ["Pairs", "RegMean", "pairs_of"]

_CHUNK = 256  # pictures in one forward pass

Matrix = NDArray[np.float64]


@SHARINGS.register("regmean")
@dataclass(frozen=True)
class RegMean:
    """Gram matrices of every layer's inputs, and their products with its weights: the merge is a regression.

    `alpha`: what entries off a Gram matrix's diagonal are multiplied by (the paper's 0.1 to 1). `ridge`: added to the
    diagonal, in units of its mean, so that directions in which nobody has any input are averaged; float32 needs some.
    Layers with more than `widest` inputs are averaged too: their Gram matrices would be larger than they are worth.
    """

    like_model: ClassVar[bool] = False
    remembers: ClassVar[bool] = False

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.9
    ridge: Annotated[float, Field(ge=1e-5, le=1)] = 1e-3
    widest: Annotated[int, Field(ge=1, le=8192)] = 2048

    def initial(self, setting: Setting) -> Vector:
        """Pairs of the network's beginning on public pictures: of the size that all later ones have, which are said as
        differences from it in float32."""
        from veilmesh.tasks.models.build import build_model

        module = build_model(*network(setting))
        pairs = pairs_of(self, module)
        return pairs.joined(WholeModel().initial(setting), _grams(self, pairs, module, setting.public_x[:_CHUNK]))

    def learner(self, setting: Setting, own: Own) -> Learner:
        return _Merging(self, setting, own)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A linear layer: its module's name, and where its weights lie in the model."""

    name: str
    inputs: int
    outputs: int
    start: int

    @property
    def weights(self) -> slice:
        return slice(self.start, self.start + self.inputs * self.outputs)

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of a Gram matrix's upper triangle, and of its product with the weights."""
        return self.inputs * (self.inputs + 1) // 2, self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Pairs:
    """How a shared vector is laid out: for each of `layers` the upper triangle of G, row by row, and G W (inputs,
    outputs); then all parameters that are in none of them, in the model's order. `parameters`: the model's number."""

    layers: tuple[_Layer, ...]
    parameters: int

    def joined(self, model: Vector, grams: Sequence[Matrix]) -> Vector:
        """A model (d,) and a Gram matrix (inputs, inputs) for each layer, as one shared vector."""
        parts = []
        for layer, gram in zip(self.layers, grams, strict=True):
            weights = model[layer.weights].astype(np.float64).reshape(layer.outputs, layer.inputs)
            parts += [gram[np.triu_indices(layer.inputs)], (gram @ weights.T).reshape(-1)]
        return np.concatenate([*parts, model[self._others]]).astype(np.float32)

    def grams(self, shared: Vector) -> list[tuple[Matrix, Matrix]]:
        """(G, G W) of each layer: (inputs, inputs) and (inputs, outputs)."""
        bounds = np.cumsum([0, *(size for layer in self.layers for size in layer.sizes)])
        parts = [shared[a:b].astype(np.float64) for a, b in pairwise(bounds)]
        found = []
        for layer, triangle, product in zip(self.layers, parts[::2], parts[1::2], strict=True):
            gram = np.zeros((layer.inputs, layer.inputs))
            gram[np.triu_indices(layer.inputs)] = triangle
            whole = gram + gram.T - np.diag(np.diag(gram))
            found.append((whole, product.reshape(layer.inputs, layer.outputs)))
        return found

    def solved(self, shared: Vector) -> Vector:
        """The model (d,) that a shared vector says: one regression a layer."""
        if shared.shape != (self.size,):
            raise LocalError(f"a shared vector of {shared.shape} where {self.size} numbers are pairs and parameters")
        model = np.empty(self.parameters, np.float32)
        model[self._others] = shared[self.size - int(self._others.sum()) :]
        for layer, (gram, product) in zip(self.layers, self.grams(shared), strict=True):
            model[layer.weights] = np.linalg.lstsq(gram, product, rcond=None)[0].T.reshape(-1)
        return model

    @property
    def size(self) -> int:
        return sum(sum(layer.sizes) for layer in self.layers) + int(self._others.sum())

    @property
    def _others(self) -> NDArray[np.bool_]:
        """(d,): which parameters are averaged as they are."""
        others = np.ones(self.parameters, bool)
        for layer in self.layers:
            others[layer.weights] = False
        return others


def pairs_of(scheme: RegMean, module: "nn.Module") -> Pairs:
    """How the shared vectors of a network are laid out."""
    from veilmesh.tasks.models.build import layout

    rows = layout(module)
    linear = dict(_linear(module))
    layers = []
    for name, shape, start in rows:
        owner, _, what = name.rpartition(".")
        inputs = int(np.prod(shape[1:]))
        if what == "weight" and owner in linear and inputs <= scheme.widest:
            layers.append(_Layer(owner, inputs, shape[0], start))
    return Pairs(tuple(layers), sum(int(np.prod(shape)) for _, shape, _ in rows))


class _Merging:
    """A peer's learner: trains the merged model with the ordinary trainer, and says its pairs."""

    def __init__(self, scheme: RegMean, setting: Setting, own: Own) -> None:
        from veilmesh.tasks.models.build import build_model

        self._scheme = scheme
        self._module = build_model(*network(setting))
        self._pairs = pairs_of(scheme, self._module)
        self._trainer = WholeModel().learner(setting, own)
        self._x = own.x

    def run(self, tasks: Sequence[object]) -> list[object]:
        return [self._run_one(task) for task in tasks]

    def _run_one(self, task: object) -> object:
        match task:
            case Train(round=round_, parameters=shared, proximal=0.0, correction=None):
                return self._train(round_, shared)
            case Evaluate(parameters=shared):
                return self._trainer.run([Evaluate(self._pairs.solved(shared))])[0]
        raise LocalError(f"pairs cannot be had from a {type(task).__name__} of this kind")

    def _train(self, round_: int, shared: Vector) -> Trained:
        from veilmesh.tasks.models.build import vector_to_parameters

        begin = self._pairs.solved(shared)
        [trained] = self._trainer.run([Train(round_, begin)])
        assert isinstance(trained, Trained)
        mine = begin + trained.update
        vector_to_parameters(self._module, mine)
        said = self._pairs.joined(mine, _grams(self._scheme, self._pairs, self._module, self._x))
        return Trained(said - shared, trained.loss, trained.samples)


def _grams(scheme: RegMean, pairs: Pairs, module: "nn.Module", x: NDArray[np.float32]) -> list[Matrix]:
    """Of the inputs that each layer of `module` has over pictures `x`."""
    import torch

    sums = {layer.name: np.zeros((layer.inputs, layer.inputs)) for layer in pairs.layers}
    counts = dict.fromkeys(sums, 0)

    def add(name: str, rows: "Tensor") -> None:
        sums[name] += (rows.T @ rows).double().numpy()
        counts[name] += len(rows)

    with torch.inference_mode(), _watched(module.eval(), sums, add):
        for start in range(0, len(x), _CHUNK):
            module(torch.tensor(x[start : start + _CHUNK]))
    return [_regularised(scheme, sums[name] / max(counts[name], 1)) for name in sums]


def _regularised(scheme: RegMean, gram: Matrix) -> Matrix:
    diagonal = np.diag(gram)
    kept = scheme.alpha * gram + (1 - scheme.alpha) * np.diag(diagonal)
    return kept + scheme.ridge * (diagonal.mean() or 1.0) * np.eye(len(gram))


def _linear(module: "nn.Module") -> "Iterator[tuple[str, nn.Module]]":
    """The layers that are linear in their inputs or their patches, by name."""
    from torch import nn

    for name, layer in module.named_modules():
        plain = type(layer) is nn.Conv2d and layer.groups == 1 and not isinstance(layer.padding, str)
        if type(layer) is nn.Linear or plain:
            yield name, layer


def _rows(layer: "nn.Module", x: "Tensor") -> "Tensor":
    """What a layer multiplies by its weights: (N, inputs), one row for every picture or patch."""
    from torch import nn
    from torch.nn import functional

    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    across, along = layer.padding[1], layer.padding[0]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(x, (across, across, along, along), mode=mode)  # type: ignore[arg-type]  # not a str: `_linear`
    patches = functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


@contextmanager
def _watched(module: "nn.Module", names: Any, add: "Callable[[str, Tensor], None]") -> "Iterator[None]":
    """While entered, the inputs of the layers called `names` are told to `add`."""
    hooks = []
    for name, layer in _linear(module):
        if name in names:
            tell = lambda layer, inputs, name=name: add(name, _rows(layer, inputs[0]))  # noqa: E731  # a hook's shape
            hooks.append(layer.register_forward_pre_hook(tell))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
