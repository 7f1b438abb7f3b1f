"""FedQSN as it was published: a server's model, of which clients only ever see masked and rounded proxies.

Source: FedQSN (arXiv 2508.18911), section 4. The server has a model W. It hides some columns of every weight matrix
from everybody, for good (M_server), and of the others some more from each client in each round (M_client), rounds the
rest to NormalFloat, and says Q(W * M_server * M_client), scaled so that the masks are unbiased, as dropout is. Clients
train what they are told like any model, and say their updates; the server adds their average to W. What it protects is
the server's model. The clients' data are where they are in federated averaging.

Where a client's update counts (`taught`). A client trains the zeros that it was told, too. With "all", as in the paper,
the server adds that to columns which no client ever sees: they drift with every round, since nobody notices how far
they are, and whoever pools the updates of all clients knows by how much. With "shown" hidden columns stay what they
were.

`masked_proxy.py` is the same among peers of whom each has a model of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from veilmesh.core import generator, seed_number
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Codec, Mask, Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.normal_float import NormalFloat
from veilmesh.swarm.sharing.base import SHARINGS, Learner, Own, Setting
from veilmesh.swarm.sharing.columns import Columns, columns_of
from veilmesh.swarm.sharing.whole_model import WholeModel
from veilmesh.tasks.work import Train, Trained

__all__ = ["Served", "ServedProxy"]

_Share = Annotated[float, Field(ge=0, lt=1)]


@SHARINGS.register("served-proxy")
@dataclass(frozen=True)
class ServedProxy:
    """The server's model as masked, rounded proxies, another for each client and round (FedQSN, arXiv 2508.18911).

    Args:
        hidden: share of each matrix's columns that no client ever sees; p1 of the paper.
        dropped: share of the other columns that one client does not see in one round; p2.
        bits: of a weight in a proxy, 2 to 4; 0: they are not rounded.
        block: weights that share a scale.
        taught: whether an update counts where its client was shown nothing: "all", as in the paper, or "shown".
        pretraining: steps of training on the public pictures that the server's model has behind it at the start, by an
            order of its own; clients do not know where that led. The paper's server begins with a pretrained model.
    """

    like_model: ClassVar[bool] = True
    remembers: ClassVar[bool] = False

    hidden: _Share = 0.2
    dropped: _Share = 0.2
    bits: Literal[0, 2, 3, 4] = 4
    block: Annotated[int, Field(ge=16, le=4096)] = 64
    taught: Literal["all", "shown"] = "all"
    pretraining: Annotated[int, Field(ge=0)] = 0

    def initial(self, setting: Setting) -> Vector:
        return WholeModel().initial(setting)

    def learner(self, setting: Setting, own: Own) -> Learner:
        learner = WholeModel().learner(setting, own)
        return _Taught(learner, columns_of(setting)) if self.taught == "shown" else learner

    def served(self, setting: Setting, private: int) -> "Served":
        """As `Serves.served`."""
        columns = columns_of(setting)
        secret = columns.drawn(self.hidden, generator(private, "hidden"))
        codec: Codec = NormalFloat(self.bits, self.block) if self.bits else Dense()
        begun = self._pretrained(setting, private) if self.pretraining else self.initial(setting)
        return Served(begun, columns, secret, self.dropped, codec, private)

    def _pretrained(self, setting: Setting, private: int) -> Vector:
        begin = self.initial(setting)
        order, x, y = seed_number(private, "pretraining"), setting.public_x, setting.public_y
        alone = replace(setting, settings=replace(setting.settings, local_steps=self.pretraining), seed=order)
        learner = WholeModel().learner(alone, Own(setting.peers, x, y, x[:1], y[:1], None, private))
        [trained] = learner.run([Train(0, begin)])
        return begin + cast(Trained, trained).update


@dataclass(frozen=True)
class _Taught:
    """A client that says nothing of what it was not shown."""

    trainer: Learner
    columns: Columns

    def run(self, tasks: Sequence[object]) -> list[object]:
        return [self._kept(task, answer) for task, answer in zip(tasks, self.trainer.run(tasks), strict=True)]

    def _kept(self, task: object, answer: object) -> object:
        if not isinstance(task, Train) or not isinstance(answer, Trained):
            return answer
        there = self.columns.spread(self.columns.shown(task.parameters))
        return replace(answer, update=np.where(there, answer.update, np.float32(0)))


@dataclass(frozen=True)
class Served:
    """What a server keeps to itself: where its model begins (d,), which columns it hides, and how it draws the rest."""

    begun: Vector
    columns: Columns
    secret: Mask
    dropped: float
    codec: Codec
    private: int

    @property
    def hidden(self) -> Mask:
        """As `Serving.hidden`."""
        return ~self.columns.spread(self.secret)

    def proxy(self, x: Vector, client: int, round_: int) -> bytes:
        """What the client of that place in the roster is told of the model `x` (d,) in a round: a codec's bytes."""
        kept = self.columns.drawn(self.dropped, generator(self.private, "dropped", client, round_), self.secret)
        return table.encode(self.codec, x * self.columns.scale(kept), generator(self.private, "rounding"))
