"""What an update gives away of single layers before anything is searched: class features, and batch statistics."""

import numpy as np
import torch
from torch import Tensor

from veilmesh.attacks.matching.recipe import Case

__all__ = ["class_features", "leaked_statistics"]

_FAINT = 1e-3  # of the largest bias gradient: below it a class's features are rounding errors


def class_features(case: Case) -> Tensor | None:
    """The features (B, F) that entered the last fully connected layer, for every picture those of its class: row c of
    the weight gradient over entry c of the bias gradient. Exact where a class occurs once and no other class is likely;
    rows of classes with a faint bias gradient are not a number. None without such a layer, or labels to go by.
    """
    layers = [layer for layer in case.network.linear_layers() if layer.bias is not None]
    if not layers or case.labels is None or case.labels.ndim > 1:
        return None
    gradient = case.gradient.cpu().numpy()
    weight, bias = layers[-1].weight_of(gradient), layers[-1].bias_of(gradient)
    assert bias is not None  # only layers with one were taken
    clear = np.abs(bias) > _FAINT * np.abs(bias).max(initial=0.0)
    rows = np.where(clear[:, None], weight / np.where(clear, bias, 1.0)[:, None], np.nan)
    return torch.from_numpy(rows[case.labels.cpu().numpy()]).float().to(case.gradient.device)


def leaked_statistics(case: Case) -> list[tuple[Tensor, Tensor]]:
    """The batch's (mean, variance) in every batch normalisation, first to last: their running statistics move towards
    the batch's by the learning rate, and are exchanged like parameters. Of several local steps, the mean over them."""
    named = case.network.module.named_parameters()
    moved = {
        name: running.detach() - piece
        for (name, running), piece in zip(named, case.network.split(case.gradient), strict=True)
    }
    layers = [name.removesuffix(".running_mean") for name in moved if name.endswith(".running_mean")]
    return [(moved[f"{layer}.running_mean"], moved[f"{layer}.running_var"]) for layer in layers]
