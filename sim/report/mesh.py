"""The mesh as a drawing: peers on a circle, a server in its middle, and what the adversary holds and hears marked.

In split mode a data owner and those who play stages for it stand along an arch, and several data owners on a circle
around the tail. Shape says the role (square: server; diamond: plays a stage, hollow: stands by; double ring: malicious;
dashed: did not finish), colour only repeats it.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from markupsafe import Markup

from veilmesh.sim.report.model import Peer, Summary
from veilmesh.sim.report.rows import malicious, staged
from veilmesh.sim.report.svg import canvas, tag, trimmed

__all__ = ["mesh_drawing", "mesh_kinds"]

WIDTH, HEIGHT = 400.0, 310.0
ROLES = ("server", "stage", "standby")  # that look otherwise than a peer
ROOM = 8  # members that have room for a word on what they play
MANY = 24  # beyond this many peers only the marked ones are named

Place = tuple[float, float]


def mesh_drawing(label: str, summary: Summary) -> Markup | None:
    """The mesh of a run; None if neither peers nor edges are known. `label` names the run for those who cannot see."""
    peers = _peers(summary)
    if not peers:
        return None
    places = _places(peers)
    edges = [(a, b) for a, b in summary.edges if a in places and b in places and a != b]
    held = set(malicious(summary))
    tapped = summary.adversary is not None and summary.adversary.taps_wire
    lines = [_edge(places[a], places[b], heard=bool(held & {a, b}), tapped=tapped) for a, b in edges]
    plays = _plays(summary, peers)
    nodes = [_node(p, places[p.index], p.index in held, len(peers), plays.get(p.index, "")) for p in peers]
    words = _words(label, peers, edges, held, tapped)
    return canvas(WIDTH, HEIGHT, words, {"class": "mesh"}, tag("g", {}, *lines), tag("g", {}, *nodes))


def mesh_kinds(summaries: Sequence[Summary]) -> list[tuple[str, Markup, str]]:
    """A legend for the drawings of `summaries`: (class, swatch, meaning) of each mark that occurs in one of them."""
    held = any(malicious(summary) for summary in summaries)
    tapped = any(summary.adversary and summary.adversary.taps_wire for summary in summaries)
    server = _has_role(summaries, "server")
    lost = any(_lost(peer) for summary in summaries for peer in summary.peers)
    stage, standby = (_has_role(summaries, role) for role in ("stage", "standby"))
    owner = "peer; in split mode a data owner" if stage else "peer"
    kinds = [("peer", True, owner), ("peer server", server, "server"), ("peer stage", stage, "plays a stage")]
    kinds += [("peer standby", standby, "stands by"), ("peer malicious", held, "malicious")]
    kinds += [("peer lost", lost, "did not finish")]
    lines = [("edge", True, "link"), ("edge heard", held, "link that ends at the malicious one")]
    lines += [("edge tapped", tapped, "link tapped: sealed frames only")]
    return [(kind, _swatch_node(kind), words) for kind, there, words in kinds if there] + [
        (kind, _swatch_edge(kind), words) for kind, there, words in lines if there
    ]


def _plays(summary: Summary, peers: Sequence[Peer]) -> Mapping[int, str]:
    """What stands beside those who play a stage, where there is room for it. Of several data owners all play one."""
    if summary.split is None or len(peers) > ROOM:
        return {}
    named = peers if _on_arch(peers) else [peer for peer in peers if peer.role != "peer"]
    return {peer.index: staged(summary.split, peer.name) for peer in named}


def _on_arch(peers: Sequence[Peer]) -> bool:
    """Whether there is one data owner, and others play stages for it."""
    roles = [peer.role for peer in peers]
    return "stage" in roles and roles.count("peer") == 1


def _has_role(summaries: Sequence[Summary], role: str) -> bool:
    return any(peer.role == role for summary in summaries for peer in summary.peers)


def _peers(summary: Summary) -> list[Peer]:
    """The peers of the summary, and one for every other index that its edges name."""
    known = {peer.index: peer for peer in summary.peers}
    ends = {end for edge in summary.edges for end in edge}
    return [known.get(index) or Peer(index, f"peer:{index}") for index in sorted(known.keys() | ends)]


def _places(peers: Sequence[Peer]) -> Mapping[int, Place]:
    if _on_arch(peers):
        return _arch([peer for peer in peers if peer.role != "standby"], [p for p in peers if p.role == "standby"])
    hubs = [peer for peer in peers if peer.role in ("server", "stage")]
    around = [peer for peer in peers if peer not in hubs]
    x, y = WIDTH / 2, HEIGHT / 2
    places = {peer.index: (x + 44 * at, y) for at, peer in enumerate(hubs)}
    for at, peer in enumerate(around):
        angle = 2 * math.pi * at / len(around) - math.pi / 2
        places[peer.index] = (x + 112 * math.cos(angle), y + 112 * math.sin(angle))
    return places


def _arch(along: Sequence[Peer], below: Sequence[Peer]) -> Mapping[int, Place]:
    """Those who play stages in their order, from left to right; the arch keeps every link apart from the others."""
    x, y = WIDTH / 2, HEIGHT * (0.5 if len(along) < 3 and not below else 0.62)
    places = {}
    for at, peer in enumerate(along):
        angle = math.pi * (1 - at / max(len(along) - 1, 1))
        places[peer.index] = (x + 132 * math.cos(angle), y - 108 * math.sin(angle))
    for at, peer in enumerate(below):
        places[peer.index] = (x + 240 * ((at + 1) / (len(below) + 1) - 0.5), y + 66)
    return places


def _edge(a: Place, b: Place, *, heard: bool, tapped: bool) -> Markup:
    kind = "edge" + (" heard" if heard else " tapped" if tapped else "")
    return tag("line", {"class": kind, "x1": a[0], "y1": a[1], "x2": b[0], "y2": b[1]})


def _node(peer: Peer, place: Place, held: bool, count: int, plays: str) -> Markup:
    kind = " ".join(["peer", *_marks(peer, held)])
    radius = 13.0 if count <= 12 else 9.0 if count <= MANY else 5.0
    shapes = _shapes(place, radius, peer.role, held)
    named = count <= MANY or held or peer.role != "peer"
    names = _name(peer, place, radius, held, plays) if named else ()
    return tag("g", {"class": kind, "data-peer": peer.index}, *shapes, *names)


def _marks(peer: Peer, held: bool) -> list[str]:
    kinds = (*((role, peer.role == role) for role in ROLES), ("malicious", held), ("lost", _lost(peer)))
    return [kind for kind, there in kinds if there]


def _lost(peer: Peer) -> bool:
    return peer.ended not in ("", "finished")


def _shapes(place: Place, radius: float, role: str, held: bool) -> list[Markup]:
    rings = [radius + 5, radius] if held else [radius]
    kinds = ["ring", "body"] if held else ["body"]
    return [_shape(kind, place, size, role) for kind, size in zip(kinds, rings, strict=True)]


def _shape(kind: str, place: Place, radius: float, role: str) -> Markup:
    x, y = place
    if role in ("stage", "standby"):
        wide = radius * 1.2  # a diamond of a circle's radius looks smaller
        corners = ((x, y - wide), (x + wide, y), (x, y + wide), (x - wide, y))
        return tag("polygon", {"class": kind, "points": " ".join(f"{trimmed(a)},{trimmed(b)}" for a, b in corners)})
    if role != "server":
        return tag("circle", {"class": kind, "cx": x, "cy": y, "r": radius})
    corner = {"x": x - radius, "y": y - radius, "width": 2 * radius, "height": 2 * radius, "rx": 2}
    return tag("rect", {"class": kind, **corner})


def _name(peer: Peer, place: Place, radius: float, held: bool, plays: str) -> list[Markup]:
    """The peer's name outside the circle; under a server, which sits in the middle."""
    dx, dy = place[0] - WIDTH / 2, place[1] - HEIGHT / 2
    away = math.hypot(dx, dy)
    dx, dy = (dx / away, dy / away) if away > 60 else (0.0, 1.0)
    if plays:  # more words than fit beside it
        dx, dy = 0.0, -1.0 if dy < -0.2 else 1.0
    gap = radius + (12 if held else 8)
    anchor = "start" if dx > 0.3 else "end" if dx < -0.3 else "middle"
    x, y = place[0] + dx * gap, place[1] + dy * (gap + 6) + 4
    note = ", ".join([plays] * bool(plays) + ["malicious"] * held + [peer.ended] * _lost(peer))
    second = y + 15 if dy > -0.5 else y - 15
    lines = [tag("text", {"class": "name", "x": x, "y": y, "text-anchor": anchor}, _short(peer))]
    if note:
        lines.append(tag("text", {"class": "name note", "x": x, "y": second, "text-anchor": anchor}, note))
    return lines


def _short(peer: Peer) -> str:
    name = peer.name or f"peer:{peer.index}"
    return name if len(name) <= 14 else name[:13] + "…"


def _words(label: str, peers: Sequence[Peer], edges: Sequence[object], held: Collection[int], tapped: bool) -> str:
    servers = [_short(peer) for peer in peers if peer.role == "server"]
    names = [_short(peer) for peer in peers if peer.index in held]
    stages = [_short(peer) for peer in peers if peer.role == "stage"]
    parts = [f"Mesh of {label}: {len(peers)} {'members' if stages else 'peers'}, {len(edges)} links"]
    parts += [f"stages are played by {', '.join(stages)}"] if stages else []
    parts += [f"the server is {', '.join(servers)}"] if servers else []
    parts += [f"malicious: {', '.join(names)}"] if names else []
    parts += ["every link is tapped"] if tapped else []
    return "; ".join(parts) + "."


def _swatch_node(kind: str) -> Markup:
    role = next((role for role in ROLES if role in kind), "peer")
    shapes = _shapes((10, 10), 5 if "malicious" in kind else 6, role, "malicious" in kind)
    return tag("svg", {"viewBox": "0 0 20 20", "aria-hidden": "true"}, tag("g", {"class": kind}, *shapes))


def _swatch_edge(kind: str) -> Markup:
    line = tag("line", {"class": kind, "x1": 1, "x2": 19, "y1": 10, "y2": 10})
    return tag("svg", {"viewBox": "0 0 20 20", "aria-hidden": "true"}, line)
