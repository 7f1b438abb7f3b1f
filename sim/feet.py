"""Who stands on which transport: what a scenario says of a mesh that spans several, and what follows from it.

Two members speak to each other over the transport they have in common. Where they have none, a bridge that is a
neighbour of both carries their frames (`peer/transports/bridge_forward.py`). A mesh that cannot come up so is refused
before anything starts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from veilmesh.core import BadInput
from veilmesh.core.registry import name_and_options
from veilmesh.peer.transports.base import TRANSPORTS, Transport, TransportKind
from veilmesh.peer.transports.bridge_address import WAYS
from veilmesh.peer.transports.bridge_foot import Foot
from veilmesh.sim.faults import STAGES

if TYPE_CHECKING:
    from veilmesh.sim.scenario import Scenario

__all__ = ["Feet", "in_force", "kinds", "misplaced_feet", "on_foot", "require_ways", "standing"]

BRIDGE: Final = "bridge"
_MEMBERS: Final = re.compile(rf"peer:(?P<first>[0-9]{{1,6}})(-(?P<last>[0-9]{{1,6}}))?|server|{STAGES}")


def _table(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class Feet(BaseModel):
    """Members that stand on another transport than `transport` says: libp2p, mqtt, or bridge, which is both.

    Tables that a bridge does not give, and options that are not in them, are as the others' of that transport are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: tuple[str, ...] = Field(min_length=1, description="by name: 'peer:3', 'peer:4-6', 'server', 'tail'")
    transport: Annotated[dict[str, Any], BeforeValidator(_table)] = Field(description="a name, or a table with one")

    @property
    def names(self) -> list[str]:
        """The members, one by one. Raises ValueError: that is no member's name."""
        return [name for text in self.members for name in _named(text)]


def misplaced_feet(scenario: "Scenario") -> str | None:
    """Why members cannot stand so, as a sentence without its full stop; None if they can, as far as one sees here."""
    feet, edge = scenario.feet, scenario.edge
    if scenario.door.open and (feet or scenario.transport.name == BRIDGE):
        return (
            "whoever joins a mesh comes to its one transport; take libp2p or mqtt for everybody, or leave out door.open"
        )
    if not feet:
        return None
    for table in (scenario.transport.model_dump(), *(foot.transport for foot in feet)):
        if table.get("name") not in (*WAYS, BRIDGE):
            known = ", ".join((*WAYS, BRIDGE))
            return (
                f"a mesh on several transports is made of {known}, and not of {table.get('name')!r}; take one of them"
            )
    try:
        names = [name for foot in feet for name in foot.names]
    except ValueError as error:
        return str(error)
    if twice := next((name for name in names if names.count(name) > 1), None):
        return f"feet says twice where {twice} stands; name every member once"
    if scenario.world != "libp2p":
        return f"the {scenario.world} world has no transports to stand on; leave out feet, or set world to libp2p"
    if edge and edge.pace:
        return "a slow link is one to neighbours on the same transport; leave out feet, or edge.rate and edge.delay"
    return None


def standing(scenario: "Scenario", member: str) -> dict[str, Any]:
    """The transport of the member of this name: a table with its name and options. Raises BadInput: a bridge's foot is
    no table."""
    whole = scenario.transport.model_dump()
    table = next((dict(foot.transport) for foot in scenario.feet if member in foot.names), whole)
    if table["name"] != BRIDGE:
        return table
    if why := next((way for way in WAYS if not isinstance(table.get(way, {}), Mapping)), None):
        raise BadInput(f"transport 'bridge': {why} is a table of that transport's options; write it as one.")
    tables = [whole, *(foot.transport for foot in scenario.feet)]
    usual = {way: next((t for t in tables if t["name"] == way), {"name": way}) for way in WAYS}
    return {**table, **{way: {**name_and_options(usual[way])[1], **table.get(way, {})} for way in WAYS}}


def kinds(scenario: "Scenario", members: Sequence[str]) -> list[TransportKind]:
    """What the members stand on, each once. Raises BadInput: there is no such transport, or an option of it."""
    found: list[dict[str, Any]] = []
    for table in (standing(scenario, member) for member in members):
        if table not in found:
            found.append(table)
    return [TRANSPORTS.build_from(table) for table in found]


def on_foot(transport: Transport, scenario: "Scenario", member: str) -> Transport:
    """The member's `transport`, as it is, or as one among others where the mesh spans several."""
    way = standing(scenario, member)["name"]
    return Foot(transport, way) if scenario.feet and way != BRIDGE else transport


def require_ways(scenario: "Scenario", members: Sequence[str], edges: Iterable[tuple[int, int]]) -> None:
    """Raises BadInput where two neighbours have no transport in common, and no bridge to carry what they say."""
    if not scenario.feet:
        return
    if strange := [name for foot in scenario.feet for name in foot.names if name not in members]:
        raise BadInput(f"feet: there is no {strange[0]!r} in this run; known: {', '.join(members)}.")
    ways = [_ways(standing(scenario, member)["name"]) for member in members]
    links = list(edges)
    near = [{a if b == i else b for a, b in links if i in (a, b)} for i in range(len(members))]
    bridges = {i for i, way in enumerate(ways) if len(way) > 1}
    for one, other in links:
        if ways[one] & ways[other]:
            continue
        who = f"{members[one]} ({''.join(ways[one])}) and {members[other]} ({''.join(ways[other])})"
        if not bridges & near[one] & near[other]:
            raise BadInput(
                f"{who} are neighbours without a transport in common, and no bridge is a neighbour of both; put one of "
                "them on transport 'bridge', or take a topology that does not join them."
            )
        if strays := bridges & (near[one] ^ near[other]):
            raise BadInput(
                f"{who} have no transport in common, and {members[min(strays)]}, which may be asked to carry what they "
                "say, is a neighbour of only one of them; take a topology in which it is one of both."
            )


def in_force(said: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What protects a mesh, from what its members on each transport say: where that differs, with the transport.

    What a bridge says as those on one of its sides do is not said again.
    """
    alike = {what: how for what, how in _first(said).items() if all(s.get(what) == how for s in said.values())}
    others = {f"{n}: {what}": how for n, s in sorted(said.items()) for what, how in s.items() if what not in alike}
    return alike | {what: how for what, how in others.items() if others.get(_of_one_side(what)) != how}


def _of_one_side(what: str) -> str:
    """`mqtt: channel`, for `bridge: mqtt channel`; a bridge's other side is libp2p."""
    if not what.startswith(f"{BRIDGE}: "):
        return ""
    way, _, rest = what.removeprefix(f"{BRIDGE}: ").partition(" ")
    return f"{way}: {rest}" if way in WAYS else f"libp2p: {what.removeprefix(f'{BRIDGE}: ')}"


def _first(said: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    return next(iter(said.values()), {})


def _ways(name: str) -> frozenset[str]:
    return frozenset(WAYS) if name == BRIDGE else frozenset([name])


def _named(text: str) -> list[str]:
    if not (found := _MEMBERS.fullmatch(text)):
        raise ValueError(f"{text!r} is no member; write peer:N, peer:N-M, server, or what split mode calls one")
    if found["last"] is None:
        return [text]
    first, last = int(found["first"]), int(found["last"])
    if last < first:
        raise ValueError(f"{text!r} counts down; write the lower number first")
    return [f"peer:{number}" for number in range(first, last + 1)]
