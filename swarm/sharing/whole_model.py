"""The whole model, as federated learning has it: what is shared is what was learned."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from veilmesh.core.registry import name_and_options
from veilmesh.crypto.codecs.base import Vector
from veilmesh.swarm.sharing.base import SHARINGS, Learner, Own, Setting
from veilmesh.tasks.models.base import Shape

__all__ = ["WholeModel", "network"]


@SHARINGS.register("model")
@dataclass(frozen=True)
class WholeModel:
    """All of the network's parameters (McMahan et al. 2017): every peer's update is that of its training."""

    like_model: ClassVar[bool] = True
    remembers: ClassVar[bool] = False

    def initial(self, setting: Setting) -> Vector:
        from veilmesh.tasks.models.build import initial_vector

        return initial_vector(*network(setting))

    def learner(self, setting: Setting, own: Own) -> Learner:
        from veilmesh.tasks.models.build import build_model
        from veilmesh.tasks.training import Trainer

        return Trainer(
            own.x,
            own.y,
            own.test_x,
            own.test_y,
            build=partial(build_model, *network(setting)),
            settings=setting.settings,
            seed=setting.seed,
            peer_index=own.index,
            secret=own.secret,
            pairs=own.pairs,
            importance=own.importance,
        )


def network(setting: Setting) -> tuple[str, dict[str, Any], Shape, int, int]:
    """The arguments of `build_model` for the network that the scenario names."""
    return *name_and_options(setting.model), setting.shape, setting.classes, setting.seed
