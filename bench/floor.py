"""The floor of `bench_mesh`: the same peers one after another in one process, one thread, nothing carried anywhere.

Plain PyTorch, written as anybody would write it. Prints one line of JSON.
"""

import json
import sys
import time

import torch
from synthetic import draw  # beside this file
from torch import nn
from torch.nn import functional

__all__ = ["run"]

BATCH = 128


def network() -> nn.Module:
    """784-256-128-10: 235,146 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def run(peers: int, rounds: int, train: int, test: int) -> dict[str, float]:
    """Seconds per round and the last accuracy of so many peers that average after every epoch of their own."""
    torch.set_num_threads(1)
    x, y, test_x, test_y = (torch.from_numpy(array) for array in draw(train, test))
    model, locals_ = network(), network()
    started = time.perf_counter()
    for _ in range(rounds):
        models = []
        for peer in range(peers):
            locals_.load_state_dict(model.state_dict())
            _epoch(locals_, x[peer::peers], y[peer::peers])
            models.append([p.detach().clone() for p in locals_.parameters()])
        with torch.no_grad():
            for place, parameter in enumerate(model.parameters()):
                parameter.copy_(sum(m[place] for m in models) / peers)
    seconds = (time.perf_counter() - started) / rounds
    return {"seconds": seconds, "accuracy": float((model(test_x).argmax(1) == test_y).float().mean())}


def _epoch(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    order = torch.randperm(len(x))
    for start in range(0, len(x), BATCH):
        batch = order[start : start + BATCH]
        optimiser.zero_grad()
        functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()


if __name__ == "__main__":
    print(json.dumps(run(*(int(word) for word in sys.argv[1:5]))))
