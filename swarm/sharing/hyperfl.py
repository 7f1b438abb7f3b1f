"""HyperFL: peers share a hypernetwork, which generates their extractors; embeddings and classifiers stay at home.

Source: Guo et al. 2025 (AAAI-25, arXiv 2412.07187), and the authors' code for what the paper leaves open.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Vector
from veilmesh.swarm.sharing.base import SHARINGS, Learner, Own, Setting

if TYPE_CHECKING:
    from veilmesh.tasks.models.hypernetwork import Hypernetwork

__all__ = ["HyperFL", "Positive"]

_Width = Annotated[int, Field(ge=1, le=1 << 14)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@SHARINGS.register("hyperfl")
@dataclass(frozen=True)
class HyperFL:
    """The parameters of a hypernetwork, which makes each peer's extractor of its secret embedding (Guo et al. 2025).

    The network's last layer, the classifier, is never shared. A round is `classifier_steps` steps of the classifier (0:
    as many as local steps), then the local steps of hypernetwork and embedding; both on the round's batches. The rates
    and the momentum are these and not `training`'s; the defaults are the authors', who make one epoch of the one and
    five of the other. Heads are full, `rank` narrow, or one that generates `chunk` numbers at a time: full heads are
    about `hidden` times as large as what they generate.

    Embedding and classifier begin differently at every peer, drawn from its secret. `common_start`: they begin alike,
    and known to all, as in the authors' code, where every client is a copy of one; or only the "embedding" does, or the
    "classifier". A star's hub has neither of its own: what it scores is the shared vector with parts nobody trains.
    """

    embedding: _Width = 64
    hidden: _Width = 128
    rank: Annotated[int, Field(ge=0, le=1 << 14)] = 0
    chunk: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    head_bias: bool = True
    learning_rate: Positive = 0.02
    classifier_rate: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    clip: Positive = 50.0
    classifier_steps: Annotated[int, Field(ge=0)] = 0
    common_start: bool | Literal["embedding", "classifier"] = False
    like_model: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    def initial(self, setting: Setting) -> Vector:
        from veilmesh.tasks.models.hypernetwork import initial_phi

        if setting.settings.optimizer != "sgd":
            raise BadInput("sharing 'hyperfl' learns by SGD with rates of its own; leave out training.optimizer.")
        return initial_phi(self.hypernetwork(setting), setting.seed)

    def learner(self, setting: Setting, own: Own) -> Learner:
        from veilmesh.tasks.generated import GeneratedTrainer, Rates
        from veilmesh.tasks.models.hypernetwork import own_parts

        net = self.hypernetwork(setting)
        v, psi = own_parts(net, own.private)
        if self.common_start:
            common_v, common_psi = own_parts(net, setting.seed)
            v = v if self.common_start == "classifier" else common_v
            psi = psi if self.common_start == "embedding" else common_psi
        rates = Rates(
            self.learning_rate, self.classifier_rate, self.momentum, self.decay, self.clip, self.classifier_steps
        )
        return GeneratedTrainer(
            own.x,
            own.y,
            own.test_x,
            own.test_y,
            net=net,
            v=v,
            psi=psi,
            settings=setting.settings,
            rates=rates,
            seed=setting.seed,
            peer_index=own.index,
            importance=own.importance,
        )

    def hypernetwork(self, setting: Setting) -> "Hypernetwork":
        """What is public of it: which tensors it generates, and what lies where in a shared vector."""
        from veilmesh.tasks.models.hypernetwork import HyperOptions, hypernetwork

        options = HyperOptions(self.embedding, self.hidden, self.rank, self.chunk, self.head_bias)
        return hypernetwork(options, setting.model, setting.shape, setting.classes)
