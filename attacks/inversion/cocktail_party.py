"""Cocktail party: a batch unmixed from a fully connected layer's gradient by independent component analysis.

The rows of dL/dW = sum_i delta_i x_i^T are mixtures of the B inputs. They are centred and whitened to B rows; a
matrix whose rows have unit length unmixes them, so that every row is far from Gaussian (negentropy, by log cosh),
smooth as a picture is (total variation), and no two rows are alike (Kariyappa et al., Cocktail Party Attack, ICML
2023). The weights in their public program were read: total variation 3.1, decorrelation 1.47 with exp(12.4 |cos|) -
1, Adam at 1e-3 for TinyImageNet and B = 128; there the negentropy is set to zero after it is computed, and weights
were chosen by the best LPIPS to the truth of a batch. Ours were chosen on public CIFAR-10 pictures and keep the
negentropy.

What permutes the batch cannot be known and does not matter. Sign and scale come from the bias gradient first, which is
the sum of the mixture's weights, and of that and both signs stretched to [0, 1] the one that leaves the range least.
Not exact, ever: two pictures that look alike stay mixed. Where the layer is followed by a ReLU, `spear` comes first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from veilmesh.attacks.inversion.labels import batch_size, infer_labels
from veilmesh.attacks.network import LinearLayer, Network
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, View
from veilmesh.core import BadInput

__all__ = ["CocktailParty"]

Floats = NDArray[np.float64]

_RATE = 0.02
_SHARP = 12.4  # T in exp(T |cos|) - 1
_GAUSSIAN = 0.37457  # mean log cosh of a standard normal number


@ATTACKS.register("cocktail-party")
@dataclass(frozen=True, slots=True)
class CocktailParty:
    """Larger batches, approximately, from a fully connected layer that sees the picture, by unmixing (cocktail party).

    On a network whose first layer does not see the picture there are no pictures in the guesses.

    Args:
        iterations: steps of Adam on the unmixing matrix.
        tv: weight of the total variation of the unmixed pictures.
        decorrelation: weight of what keeps two rows from finding the same picture.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
    """

    reconstructs: ClassVar[str] = "pictures"

    iterations: Annotated[int, Field(ge=1)] = 1000
    tv: Annotated[float, Field(ge=0)] = 10.0
    decorrelation: Annotated[float, Field(ge=0)] = 0.1
    targets: Annotated[int, Field(ge=1)] = 1

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput on a network without a fully connected layer that has a bias."""
        network = Network(view.public)
        layers = [layer for layer in network.linear_layers() if layer.bias is not None]
        if not layers:
            raise BadInput("The cocktail party needs a fully connected layer with a bias, and this network has none.")
        for observed in observe_updates(view, self.targets):
            labels = infer_labels(network, observed, view.public)
            pictures, loss = np.zeros((0, *network.shape), np.float32), 1.0
            if scale := network.picture_scale(layers[0]):
                inputs, loss = self._unmixed(layers[0], observed, network.shape, batch_size(observed, view.public), rng)
                pictures = _in_range(inputs, scale, network.shape)
            details = {"exact": observed.exact, "coverage": observed.coverage}
            yield Guess(observed.victim, observed.round, pictures, labels, loss, details, observed.among)

    def _unmixed(
        self, layer: LinearLayer, observed: Observed, shape: tuple[int, int, int], batch: int, rng: np.random.Generator
    ) -> tuple[list[tuple[Floats, float]], float]:
        """Each source (in,), with the sum of its weights in the batch, and the loss they were found at."""
        gradient, bias = layer.weight_of(observed.update), layer.bias_of(observed.update)
        assert bias is not None  # run() takes only layers that have one
        left, singular, _ = np.linalg.svd(gradient - gradient.mean(axis=1, keepdims=True), full_matrices=False)
        count = max(1, min(batch, int((singular > 1e-9 * singular[0]).sum())))
        whiten = left[:, :count].T / singular[:count, None] * np.sqrt(gradient.shape[1])
        white, means = whiten @ gradient, (whiten @ gradient).mean(axis=1, keepdims=True)
        rows, loss = self._descend(torch.from_numpy(white - means).float(), torch.from_numpy(means).float(), shape, rng)
        sources, weights = rows @ white, rows @ (whiten @ bias)
        return list(zip(sources, weights, strict=True)), loss

    def _descend(
        self, white: Tensor, means: Tensor, shape: tuple[int, int, int], rng: np.random.Generator
    ) -> tuple[Floats, float]:
        """The best unmixing matrix (B, B), unit rows, of `white` (B, n) and what its loss is."""
        start = np.linalg.qr(rng.standard_normal((len(white), len(white))))[0]
        raw = torch.from_numpy(start).float().requires_grad_(True)
        first, second = torch.zeros_like(raw), torch.zeros_like(raw)
        best, best_loss = start, np.inf
        for step in range(self.iterations + 1):
            rows = raw / raw.norm(dim=1, keepdim=True)
            loss = self._loss(rows, white, means, shape)
            if loss.item() < best_loss:
                best, best_loss = rows.detach().double().numpy(), loss.item()
            (slope,) = torch.autograd.grad(loss, raw)
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope.square()
            rate = _RATE * (1 + np.cos(np.pi * step / (self.iterations + 1))) / 2
            mean, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            raw = (raw - rate * mean / (spread.sqrt() + 1e-8)).detach().requires_grad_(True)
        return best, float(best_loss)

    def _loss(self, rows: Tensor, white: Tensor, means: Tensor, shape: tuple[int, int, int]) -> Tensor:
        sources = rows @ white
        heaped = (sources.abs() + torch.nn.functional.softplus(-2 * sources.abs()) - np.log(2)).mean(dim=1)
        loss: Tensor = -(heaped - _GAUSSIAN).square().mean() * 100
        picture = (sources + rows @ means).view(-1, *shape)
        for axis in (2, 3):
            if picture.shape[axis] > 1:
                loss = loss + self.tv * picture.diff(dim=axis).abs().mean()
        alike = (rows @ rows.T).abs() - torch.eye(len(rows))
        return loss + self.decorrelation * (torch.exp(_SHARP * alike.clamp_min(0)) - 1).mean()


def _in_range(
    sources: list[tuple[Floats, float]], scale: tuple[NDArray[np.float32], NDArray[np.float32]], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Pictures (B, C, H, W) in [0, 1] from sources (in,) of unknown sign and scale.

    dL/dW = sum_i delta_i x_i^T and dL/db = sum_i delta_i, so one combination of rows that gives c x_i gives c of the
    biases. Where that leaves the range far behind, what was unmixed is stretched to it instead, the brighter way up.
    """
    pictures = []
    for source, weight in sources:
        exact = (source / weight - scale[0]) / scale[1] if abs(weight) > 1e-12 else np.full_like(source, np.inf)
        low, high = np.quantile(source, (0.005, 0.995))
        stretched = (source - low) / max(high - low, 1e-30)
        outside = np.abs(exact - exact.clip(0, 1)).mean() if np.isfinite(exact).all() else np.inf
        flat = exact.std() < 0.02 if np.isfinite(exact).all() else True
        pictures.append(exact if outside < 0.05 and not flat else stretched)
    return np.stack(pictures).clip(0, 1).astype(np.float32).reshape(-1, *shape)
