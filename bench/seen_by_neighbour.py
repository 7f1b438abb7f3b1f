"""One victim, one neighbour, one update: the smallest mesh whose view an attack can be given, made by hand.

The victim makes one step of SGD from the common parameters, puts the update through a guard and a codec where asked
to, and says it to its neighbour `curious`, who keeps to the protocol. No transport, no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from veilmesh.attacks import Public, Vantage, View, observe
from veilmesh.attacks.payloads.base import PAYLOADS
from veilmesh.core import generator
from veilmesh.crypto.codecs import CODECS, encode
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.transcript import Record
from veilmesh.swarm import messages
from veilmesh.swarm.guards.base import GUARDS, RoundInfo
from veilmesh.tasks.models.build import build_model, initial_vector, vector_to_parameters

__all__ = ["Setting", "make_public", "make_view"]

VICTIM, CURIOUS = "a", "b"
RATE = 0.1

Pictures = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What an update is made with.

    Args:
        model: name and options of the network.
        classes: of the task.
        codec, guard: each a name and options; None: the update itself.
        payload: crafts the parameters that training begins from; None: they begin as they do.
        public: pictures that everybody has; None where there are none.
        seed: of parameters, noise and codec.
    """

    model: Mapping[str, Any]
    classes: int
    codec: Mapping[str, Any] | None = None
    guard: Mapping[str, Any] | None = None
    payload: Mapping[str, Any] | None = None
    public: Pictures | None = None
    seed: int = 0


def make_public(setting: Setting, pictures: Pictures) -> Public:
    """What everybody knows, for a victim that trains on `pictures` (B, C, H, W) in one step."""
    name, options = _split(setting.model)
    _, channels, height, width = pictures.shape
    shape = (channels, height, width)
    half = {VICTIM: 0.5, CURIOUS: 0.5}
    public = Public(
        task="pictures", shape=shape, classes=setting.classes, model=setting.model,
        initial=initial_vector(name, options, shape, setting.classes, setting.seed), learning_rate=RATE,
        batch=len(pictures), local_steps=1, strategy="gossip", codec=setting.codec or {"name": "dense"},
        guards=() if setting.guard is None else (setting.guard,), weights={VICTIM: half, CURIOUS: half},
        peers=(VICTIM, CURIOUS), pictures=setting.public,
    )  # fmt: skip
    if setting.payload is None:
        return public
    name, options = _split(setting.payload)
    crafted = PAYLOADS.build(name, options).craft(public, public.initial, generator(setting.seed, "payload"))
    return replace(public, initial=crafted)


def make_view(setting: Setting, pictures: Pictures, labels: Labels) -> View:
    """What the neighbour sees of one step on `pictures` (B, C, H, W) with `labels` (B,)."""
    public = make_public(setting, pictures)
    update = _guarded(setting, -RATE * gradient(public, pictures, labels), len(pictures))
    name, options = _split(public.codec)
    blob = encode(CODECS.build(name, options), update, generator(setting.seed, "codec"))
    body = messages.encode(messages.Update(0, len(pictures), blob))
    said = Record(0.0, CURIOUS, VICTIM, CURIOUS, len(body), b"sealed", body)
    return observe(Vantage(frozenset({CURIOUS})), [said], public)


def gradient(public: Public, pictures: Pictures, labels: Labels) -> Vector:
    """The gradient (d,) of the mean cross-entropy at the common parameters, in train mode."""
    name, options = _split(public.model)
    module = build_model(name, options, public.shape, public.classes, 0)
    vector_to_parameters(module, public.initial)
    loss = functional.cross_entropy(module(torch.from_numpy(pictures)), torch.from_numpy(labels))
    pieces = torch.autograd.grad(loss, list(module.parameters()))
    return torch.cat([piece.reshape(-1) for piece in pieces]).numpy()


def _guarded(setting: Setting, update: Vector, samples: int) -> Vector:
    if setting.guard is None:
        return update
    name, options = _split(setting.guard)
    return GUARDS.build(name, options).outgoing(update, RoundInfo(0, samples), generator(setting.seed, "guard"))


def _split(named: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return str(named["name"]), {key: value for key, value in named.items() if key != "name"}
