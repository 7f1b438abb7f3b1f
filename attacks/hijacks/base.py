"""What a hijack promises: a malicious member of split mode keeps to the protocol, and its worker lies.

Its machine is the honest one; what is wrapped is what does the machine's tasks (`split/work.py`). It knows what any
member knows, and its own stages; of the others it knows what they told it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

import numpy as np

from veilmesh.attacks.view import Public
from veilmesh.core import Registry
from veilmesh.crypto.codecs.base import CODECS, Codec

__all__ = ["HIJACKS", "Executor", "Hijack", "Knows"]

Executor: TypeAlias = Callable[[Sequence[object]], list[object]]
"""Does tasks, and says their results in their order."""


@dataclass(frozen=True, slots=True)
class Knows:
    """What a malicious member knows when the run begins. `place`: its own in the roster; `stages`: those it plays."""

    public: Public
    place: int
    stages: tuple[int, ...]
    rng: np.random.Generator

    def codec(self, which: Literal["codec", "gradients"]) -> Codec:
        """The codec of activations, or of gradients, that the run agreed on."""
        options = dict(self.public.split[which])
        return CODECS.build(str(options.pop("name")), options)


class Hijack(Protocol):
    """An active attack on split mode. Pure in what it knows and is told; its fields are its configuration."""

    seat: ClassVar[Literal["stage", "peer"]]  # whether a player of stages does it, or a data owner

    def execute(self, honest: Executor, knows: Knows) -> Executor:
        """What does the malicious member's tasks, where `honest` would do them honestly."""
        ...


HIJACKS: Registry[Hijack] = Registry("hijack", "veilmesh.attacks.hijacks")
