"""breaching's own Inverting Gradients on its own ConvNet and one picture: run by an interpreter that has breaching.

Nothing of veilmesh is imported here, and nothing of breaching is changed: its attacker gets its own payload, in eval
mode as its case has it. What both sides must share comes from a safetensors file: `picture` (1, 3, 32, 32) in [0, 1],
`label` (1,), `start` (1, 3, 32, 32) in [0, 1], and the network's parameters in their order as `parameter.0000`, ...
Prints one line of JSON: iterations, CPU seconds of the loop alone, and PSNR in [0, 1] after clamping.
"""

import argparse
import contextlib
import copy
import json
import logging
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch

__all__ = ["main"]

OPERATORS = (
    "nms", "qnms", "roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_align",
    "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward",
)  # fmt: skip
"""Of torchvision's compiled part, which breaching imports and never calls here."""


kept: list[Any] = []  # operators live as long as the library they were named in


def stand_in() -> None:
    """Name torchvision's operators, so that it can be imported where its compiled part does not fit this torch."""
    kept.append(torch.library.Library("torchvision", "DEF"))
    for name in OPERATORS:
        kept[-1].define(f"{name}(Tensor a) -> Tensor")


def load_breaching() -> Any:
    """The package, imported with whatever help this environment needs."""
    with contextlib.suppress(RuntimeError):
        import breaching

        return breaching
    for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "breaching")]:
        del sys.modules[name]
    stand_in()
    import breaching

    return breaching


def shared(path: str) -> dict[str, torch.Tensor]:
    """The file both sides read."""
    from safetensors.torch import load_file

    return load_file(path)


def network(given: dict[str, torch.Tensor]) -> torch.nn.Module:
    """breaching's ConvNet, width 64, with the parameters of the file, in eval mode."""
    from breaching.cases.models.model_preparation import ConvNet, VisionContainer

    model = VisionContainer(ConvNet(width=64, num_classes=10, num_channels=3))
    names = sorted(name for name in given if name.startswith("parameter."))
    with torch.no_grad():
        for parameter, name in zip(model.parameters(), names, strict=True):
            parameter.copy_(given[name].view_as(parameter))
    return model.eval()


def settings(breaching: Any, iterations: int, tv: float) -> Any:
    """Its `invertinggradients` configuration, with pictures brought to [-1, 1], as the other side does it."""
    overrides = ["attack=invertinggradients", "case=1_single_image_small"]
    config = breaching.get_config(overrides=overrides)
    config.attack.optim.max_iterations = iterations
    config.attack.optim.callback = 10 * iterations
    config.attack.regularization.total_variation.scale = tv
    config.case.data.mean = config.case.data.std = [0.5, 0.5, 0.5]
    return config


def clocked(attacker: Any) -> list[float]:
    """The CPU seconds of its trial: preparation and the scoring of the restart are not in them."""
    seconds: list[float] = []
    trial = attacker._run_trial

    def timed(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return trial(*given, **named)
        finally:
            seconds.append(time.process_time() - start)

    attacker._run_trial = timed
    return seconds


def attack(breaching: Any, given: dict[str, torch.Tensor], iterations: int, tv: float) -> dict[str, Any]:
    """One run of its attack."""
    config = settings(breaching, iterations, tv)
    data = config.case.data
    mean, std = (torch.tensor(list(values)).view(1, 3, 1, 1) for values in (data.mean, data.std))
    model, loss = network(given), torch.nn.CrossEntropyLoss()
    picture = (given["picture"] - mean) / std
    gradients = torch.autograd.grad(loss(model(picture), given["label"]), list(model.parameters()))
    about = SimpleNamespace(num_data_points=1, labels=given["label"], local_hyperparams=None)
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    attacker = breaching.attacks.prepare_attack(copy.deepcopy(model), loss, config.attack, setup)
    seconds = clocked(attacker)
    payload = [{"parameters": list(model.parameters()), "buffers": list(model.buffers()), "metadata": data}]
    said = [{"gradients": list(gradients), "buffers": None, "metadata": _Mapping(about)}]
    found, stats = attacker.reconstruct(payload, said, {}, initial_data=(given["start"] - mean) / std)
    guess = (found["data"] * std + mean).clamp(0, 1)
    error = (guess - given["picture"]).square().mean().item()
    psnr = -10 * torch.log10(torch.tensor(error)).item()
    size = sum(p.numel() for p in model.parameters())
    return {"iterations": iterations, "seconds": seconds[0], "psnr": psnr, "loss": stats["opt_value"], "size": size}


class _Mapping(dict[str, Any]):
    """Its metadata is read by key."""

    def __init__(self, about: SimpleNamespace) -> None:
        super().__init__(vars(about))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shared", help="the safetensors file both sides read")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--tv", type=float, default=1e-6)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    print(json.dumps(attack(load_breaching(), shared(asked.shared), asked.iterations, asked.tv)))


if __name__ == "__main__":
    main()
