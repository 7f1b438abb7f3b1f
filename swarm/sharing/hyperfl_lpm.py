"""HyperFL-LPM: the hypernetwork generates only adapters, between the stages of a backbone that everybody has."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from veilmesh.core import BadInput
from veilmesh.swarm.sharing.base import SHARINGS, Setting
from veilmesh.swarm.sharing.hyperfl import HyperFL, Positive

if TYPE_CHECKING:
    from veilmesh.tasks.models.hypernetwork import Hypernetwork

__all__ = ["HyperFLLPM"]


@SHARINGS.register("hyperfl-lpm")
@dataclass(frozen=True)
class HyperFLLPM(HyperFL):
    """As `hyperfl`, but generating adapters of a frozen backbone (HyperFL-LPM of Guo et al. 2025).

    The backbone is the network of the scenario, which everybody trains alike on the task's public pictures for
    `backbone_steps` steps of SGD with momentum 0.9, where the paper has one trained on ImageNet. Adapters are residual
    bottlenecks, a `reduction`-th as wide as their stage, as the paper's transformer has; its residual network has 1x1
    convolutions between batch normalisations. The classifier is each peer's own, as in `hyperfl`.
    """

    learning_rate: Positive = 0.01
    reduction: Annotated[int, Field(ge=1, le=1024)] = 4
    backbone_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 300
    backbone_rate: Positive = 0.05

    def hypernetwork(self, setting: Setting) -> "Hypernetwork":
        from veilmesh.tasks.models.adapted import adapted
        from veilmesh.tasks.models.hypernetwork import HyperOptions, hypernetwork_of
        from veilmesh.tasks.pretrained import pretrained
        from veilmesh.tasks.work import Settings

        if not len(setting.public_x):
            raise BadInput("sharing 'hyperfl-lpm' trains a backbone on public pictures, and this task has none.")
        backbone = None
        if self.backbone_steps:
            steps = Settings(32, self.backbone_steps, self.backbone_rate, 0.9)
            facts = (setting.model, setting.shape, setting.classes, setting.seed)
            backbone = pretrained(*facts, setting.public_x, setting.public_y, steps)
        network = adapted(setting.model, setting.shape, setting.classes, self.reduction, backbone)
        options = HyperOptions(self.embedding, self.hidden, self.rank, self.chunk, self.head_bias)
        names = tuple(f"adapters.{name}" for name, _ in network.adapters.named_parameters())
        own = tuple(f"head.{name}" for name, _ in network.head.named_parameters())
        return hypernetwork_of(options, network, names, own)
