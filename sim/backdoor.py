"""Whether a backdoor came through: what honest models say of test pictures that wear the trigger."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from veilmesh.attacks.tampers.poison import Backdoor
from veilmesh.peer.store import load_parameters
from veilmesh.sim.cast import Cast, stem
from veilmesh.tasks.work import Evaluate, Evaluated

__all__ = ["backdoor_success"]


def backdoor_success(cast: Cast, checkpoints: Path, members: Sequence[str]) -> float | None:
    """The share of triggered test pictures of other classes that are taken for the backdoor's target, 0 to 1.

    The mean over the last models of `members` (by name, honest ones); None where nobody planted a backdoor, there is no
    such picture, or nobody has a model.
    """
    tamper, data = cast.tamper, cast.dataset
    if not isinstance(tamper, Backdoor) or not members or data.per_pixel:
        return None
    others = data.test_y != tamper.target
    if not others.any():
        return None
    x, y = tamper.trigger(data.test_x[others]), data.test_y[others] * 0 + tamper.target
    triggered = replace(data, test_x=x, test_y=y)
    alike = cast.scenario.model_copy(update={"evaluate_on": "all"})
    trainer = replace(cast, scenario=alike, dataset=triggered).learner(0)
    models = [load_parameters(checkpoints / f"{stem(name)}.safetensors") for name in members]
    return fmean(a.accuracy for a in trainer.run([Evaluate(m) for m in models]) if isinstance(a, Evaluated))
