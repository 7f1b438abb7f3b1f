"""Which heads an adversary of split mode knows: the one that all began with, and those that were said to its peers."""

from dataclasses import replace

import numpy as np

from veilmesh.attacks.seen.observed import observe_updates
from veilmesh.attacks.seen.smashed import StageMap
from veilmesh.attacks.view import View
from veilmesh.core import BadInput, RemoteError
from veilmesh.core.registry import name_and_options
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.split import messages
from veilmesh.split.messages import Handover

__all__ = ["HeadsSeen"]


class HeadsSeen:
    """The heads that a view tells. Averaged heads are models of a swarm, whose updates say where each began; one that
    is handed on is said as it is."""

    def __init__(self, view: View, stages: StageMap) -> None:
        self._initial = stages.initial(0)
        self._size = self._initial.size
        self._averaged: dict[tuple[PeerId, int], Vector] = {}
        self._turns: dict[int, Vector] = {}
        self._route = [PeerId(way[0]) for way in view.public.split["route"]]
        if view.vantage.controls.intersection(self._route):
            self._hand_on(view)
            if view.public.weights:
                self._average(view)

    def before(self, head: PeerId, round_: int) -> tuple[str, Vector]:
        """What is known of the head (d,) with which `head` began `round_`, and where from: "began", "averaged", or
        "handed on"."""
        for earlier in range(round_, -1, -1):
            if (head, earlier) in self._averaged:
                return f"averaged before round {earlier}", self._averaged[head, earlier]
        turn = round_ * len(self._route) + self._route.index(head)
        told = [at for at in self._turns if at <= turn]
        if told:
            return f"handed on before turn {max(told)}", self._turns[max(told)]
        return "as it began", self._initial

    def _average(self, view: View) -> None:
        strategy = view.public.options.get("heads", "gossip")
        name, options = (strategy, {}) if isinstance(strategy, str) else name_and_options(strategy)
        swarm = replace(view.public, strategy=name, options=options, initial=self._initial, split={}, server=None)
        try:
            found = observe_updates(replace(view, public=swarm))
        except BadInput:
            return  # such a swarm says nothing in clear
        self._averaged = {(o.victim, o.round): o.start for o in found if o.exact}

    def _hand_on(self, view: View) -> None:
        for record in view.records:
            if record.body is None:
                continue
            try:
                message = messages.decode(record.body)
                if isinstance(message, Handover):
                    self._turns[message.round] = np.array(table.decode_lossless(message.blob, self._size))
            except RemoteError:
                continue  # the heads' swarm speaks another language
