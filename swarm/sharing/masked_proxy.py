"""FedQSN among peers: each has a model of its own, and what the others get of it is masked and rounded.

Source: FedQSN (arXiv 2508.18911), section 4, in which the server is the only one with a model to protect
(`served_proxy.py`). Here every peer is. Theory of operation, for peer i with its model W_i:

    M_i   columns of every weight matrix: some hidden for good, the same for all who listen; of the rest some left out
          this round, drawn anew
    Q_i   W_i rounded to NormalFloat
    said  (M_i Q_i, M_i): the proxy, and which columns are in it, one number a column

What neighbours mix are sums over whoever shows a column: v = sum_j w_ij M_j Q_j, and n = sum_j w_ij M_j. Then

    W_i  <-  W_i + v - n Q_i   =   W_i + sum_j w_ij M_j (Q_j - Q_i)
    W_i  <-  local training from W_i

Why the masks travel along. A zero in a mean is not "nothing said", it is a zero: with proxies alone, a column that i
hides grows by what the others say of it, round after round, and theirs shrinks by what i does not say; the mean of
masked models is no model. With n known every round is a step of gossip between those who show a column: weights sum
to at most one, so nothing grows, whatever the masks. For the same reason proxies are not scaled by 1 / (1 - p) here.
That factor makes a single proxy unbiased for whoever runs it as a network, and he can put it in himself; in a mean over
those who show a column nothing is missing that it would make up for. What rounding took from W_i stays in W_i, and is
not lost for later rounds.

What it costs. A column that i hides for good does not pass through i either: where all are neighbours hardly anybody
notices; on a ring, or any other thin graph, what stands in it hardly travels, and models stay apart.

What of W_i the others can know: what it hides for good is never said, and no mean over rounds has it. But all peers
train one model: where i follows the others (`follow` = "all"), its hidden columns are near the others' shown ones. With
"shown" it keeps its hidden columns out of the mixing in both directions, and trains them alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from veilmesh.core import LocalError, generator
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.crypto.codecs.normal_float import NormalFloat
from veilmesh.swarm.sharing.base import SHARINGS, Learner, Own, Setting
from veilmesh.swarm.sharing.columns import Columns, columns_of
from veilmesh.swarm.sharing.whole_model import WholeModel
from veilmesh.tasks.work import Evaluate, Train, Trained

__all__ = ["MaskedProxy"]

_Share = Annotated[float, Field(ge=0, lt=1)]
_LEAST = np.float32(1e-4)  # of a mix: a column that so little of it shows was shown by nobody


@SHARINGS.register("masked-proxy")
@dataclass(frozen=True)
class MaskedProxy:
    """Each peer's own model as a masked, rounded proxy, with the mask beside it (FedQSN, arXiv 2508.18911).

    Args:
        hidden: share of each matrix's columns that a peer never shows; p1 of the paper.
        dropped: share of the others that it leaves out of one round; p2.
        bits: of a weight in a proxy, 2 to 4; 0: as fine as the run's codec says them.
        block: weights that share a scale.
        follow: what neighbours move of a peer's model: "all" of it, or what it "shown" itself in principle, its hidden
            columns being left to its own training.
    """

    like_model: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    hidden: _Share = 0.2
    dropped: _Share = 0.2
    bits: Literal[0, 2, 3, 4] = 4
    block: Annotated[int, Field(ge=16, le=4096)] = 64
    follow: Literal["all", "shown"] = "all"

    def initial(self, setting: Setting) -> Vector:
        """The network's parameters (d,), all of them shown, and a one for each column."""
        whole = WholeModel().initial(setting)
        return np.append(whole, np.ones(columns_of(setting).total, np.float32))

    def learner(self, setting: Setting, own: Own) -> Learner:
        return _Owner(self, columns_of(setting), WholeModel().initial(setting), own.private, setting, own)

    def rounded(self, x: Vector) -> Vector:
        """What is left of `x` (d,) in a proxy."""
        if not self.bits:
            return x
        raw = table.encode(NormalFloat(self.bits, self.block), x, np.random.default_rng(0))  # which draws nothing
        return table.decode(raw, x.size).values


class _Owner:
    """A peer with a model of its own."""

    def __init__(
        self, scheme: MaskedProxy, columns: Columns, begin: Vector, private: int, setting: Setting, own: Own
    ) -> None:
        self._scheme, self._columns, self._private = scheme, columns, private
        self._trainer = WholeModel().learner(setting, own)
        self._secret = columns.drawn(scheme.hidden, generator(private, "hidden"))
        self._own = begin  # W_i
        self._told: Vector | None = None  # Q_i, as it was when this peer spoke last; None: it never did

    def run(self, tasks: Sequence[object]) -> list[object]:
        return [self._run_one(task) for task in tasks]

    def _run_one(self, task: object) -> object:
        match task:
            case Train():
                return self._train(task)
            case Evaluate(parameters=shared):
                return self._trainer.run([Evaluate(self._taken_in(shared))])[0]
        raise LocalError(f"the owner of a model cannot do a {type(task).__name__}")

    def _train(self, task: Train) -> Trained:
        begin = self._taken_in(task.parameters)
        correction = None if task.correction is None else task.correction[: begin.size]
        [answer] = self._trainer.run([replace(task, parameters=begin, correction=correction)])
        trained = cast(Trained, answer)
        self._own = begin + trained.update
        mask = self._columns.drawn(self._scheme.dropped, generator(self._private, "dropped", task.round), self._secret)
        there = self._columns.spread(mask)
        proxy = self._scheme.rounded(np.where(there, self._own, np.float32(0)))
        self._told = np.where(there, proxy, self._own)
        said = np.append(proxy, mask.astype(np.float32))
        return replace(trained, update=said - task.parameters)

    def _taken_in(self, shared: Vector) -> Vector:
        """This peer's model (d,), once it has moved as `shared`, its mix with its neighbours', says."""
        size = self._own.size
        if shared.shape != (size + self._columns.total,):
            raise LocalError(f"a vector of {shared.shape} for a proxy of {size} and {self._columns.total} columns")
        values, shown = shared[:size], np.append(shared[size:], np.float32(1))[self._columns.of]
        if self._told is None:  # nothing of ours is in it: it is the beginning, or what a hub without data is to score
            there = shown > _LEAST
            return np.where(there, values / np.where(there, shown, np.float32(1)), self._own)
        move = values - shown * self._told
        return self._own + (move if self._scheme.follow == "all" else np.where(self._kept(), move, np.float32(0)))

    def _kept(self) -> Mask:
        return self._columns.spread(self._secret)
