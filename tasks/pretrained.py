"""Networks that everybody has trained alike: on the task's public pictures, from the public seed."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from veilmesh.core import LocalError
from veilmesh.tasks.data.base import Labels, Pictures
from veilmesh.tasks.models.base import Shape
from veilmesh.tasks.models.build import build_model, initial_vector
from veilmesh.tasks.training import Trainer
from veilmesh.tasks.work import Settings, Train, Trained, Vector

__all__ = ["pretrained"]

_NOBODY = -1  # names the stream that batches of public pictures are drawn from
_MOST = 8
_trained: dict[str, Vector] = {}  # what this process has trained: a hundred simulated peers ask for the same


def pretrained(
    model: Mapping[str, Any], shape: Shape, classes: int, seed: int, x: Pictures, y: Labels, settings: Settings
) -> Vector:
    """The parameters (d,) of the network that `model` (its name and options) describes, after `settings` on x, y.

    A pure function, whose results a process remembers. Raises BadInput where training diverges.
    """
    facts = json.dumps([dict(model), shape, classes, seed, repr(settings)], sort_keys=True).encode()
    key = hashlib.sha256(facts + x.tobytes() + y.tobytes()).hexdigest()
    if key not in _trained:
        while len(_trained) >= _MOST:
            del _trained[next(iter(_trained))]
        given = {name: value for name, value in model.items() if name != "name"}
        _trained[key] = _train((str(model["name"]), given, shape, classes, seed), seed, x, y, settings)
    return _trained[key].copy()


def _train(
    network: tuple[str, dict[str, Any], Shape, int, int], seed: int, x: Pictures, y: Labels, settings: Settings
) -> Vector:
    begin = initial_vector(*network)
    trainer = Trainer(x, y, x, y, partial(build_model, *network), settings, seed, _NOBODY)
    (trained,) = trainer.run([Train(0, begin)])
    if not isinstance(trained, Trained):
        raise LocalError("a trainer did not train")
    return begin + trained.update
