"""Finding peers on the same LAN, by multicast DNS (RFC 6762, 6763): who is here says so, and hears the others.

The library has this too; here it is done with zeroconf itself. The library's tells what it finds to one list for the
whole process, writes it into the host's address book, and under `_p2p._udp` answers to every libp2p program of the LAN.
What is told of a peer: its peer id, its addresses, and a hash of its mesh's id. Everybody on the LAN hears that.
"""

import contextlib
import ipaddress
import logging
import secrets
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_address as addresses
from veilmesh.peer.transports.libp2p_finding import ADDRESSES, Surroundings, key

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

__all__ = ["SERVICE", "find", "read", "texts"]

SERVICE: Final = "_veilmesh._tcp.local."
ANSWER_MILLISECONDS: Final = 500
LOOK_SECONDS: Final = 5.0
NEAR: Final = 256
_log = logging.getLogger("veilmesh.transports.mdns")


async def find(around: Surroundings) -> None:
    """Tell the LAN who is here and hear who else is, until cancelled; where there is no multicast, do nothing."""
    import trio

    loop = trio.lowlevel.current_trio_token()
    mesh = key(around.namespace, "mdns").hex()
    near = _Near(around)

    def heard(zeroconf: "Zeroconf", service_type: str, name: str, state_change: Any) -> None:
        """In zeroconf's own thread."""
        info = None
        if "Removed" not in str(state_change):
            info = zeroconf.get_service_info(service_type, name, ANSWER_MILLISECONDS)
        one = None if info is None else read(info.properties, mesh)
        with contextlib.suppress(trio.RunFinishedError):
            loop.run_sync_soon(near.heard, name, one)

    try:
        zeroconf = await anyio.to_thread.run_sync(_open, around.listen)
    except OSError as error:
        _log.warning("no multicast on %s, so nobody is found on the LAN: %s", around.listen, error)
        return
    try:
        await _tell_and_hear(around, zeroconf, near, heard)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(zeroconf.close)  # says goodbye, too


@dataclass(slots=True)
class _Near:
    """Who is on the LAN, as far as it says so."""

    around: Surroundings
    _peers: dict[str, tuple[PeerId, list[str]]] = field(default_factory=dict)  # by the name of the record

    def heard(self, name: str, one: tuple[PeerId, list[str]] | None) -> None:
        """A record was read anew, or (None) is gone, or of no interest."""
        self._peers.pop(name, None)
        if one is not None and len(self._peers) < NEAR:
            self._peers[name] = one
            self.around.found(*one)

    def say_again(self) -> None:
        """Find everybody again: a record is read once, and the first hello may have been lost."""
        for one in self._peers.values():
            self.around.found(*one)


async def _tell_and_hear(around: Surroundings, zeroconf: "Zeroconf", near: _Near, heard: Any) -> None:
    from zeroconf import ServiceBrowser

    told: ServiceInfo | None = None
    browser = await anyio.to_thread.run_sync(lambda: ServiceBrowser(zeroconf, SERVICE, handlers=[heard]))
    name = f"{secrets.token_hex(16)}.{SERVICE}"
    try:
        while True:
            info = _info(around, key(around.namespace, "mdns").hex(), name)
            if told is None or told.text != info.text:  # addresses change when a relay comes or goes
                publish = zeroconf.register_service if told is None else zeroconf.update_service
                await anyio.to_thread.run_sync(publish, info)
                told = info
            await anyio.sleep(LOOK_SECONDS)
            near.say_again()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(browser.cancel)


def _open(listen: str) -> "Zeroconf":
    from zeroconf import InterfaceChoice, IPVersion, Zeroconf

    one = ipaddress.ip_address(listen)
    only = IPVersion.V6Only if one.version == 6 else IPVersion.V4Only
    return Zeroconf(interfaces=InterfaceChoice.All if one.is_unspecified else [listen], ip_version=only)


def _info(around: Surroundings, mesh: str, name: str) -> "ServiceInfo":
    from zeroconf import ServiceInfo

    here = _interfaces(around.listen)
    near = [f"/ip{6 if ':' in one else 4}/{one}/tcp/{around.port}/p2p/{around.me}" for one in here[: ADDRESSES - 1]]
    told = list(dict.fromkeys(near + around.addresses()))  # on a LAN, the way there is no router or relay on first
    return ServiceInfo(
        SERVICE, name, port=around.port, properties=texts(around.me, mesh, told),
        server=name.replace(SERVICE, "local."), parsed_addresses=here,
    )  # fmt: skip


def _interfaces(listen: str) -> list[str]:
    """The addresses of this machine that it listens on."""
    import psutil

    wanted = ipaddress.ip_address(listen)
    if not wanted.is_unspecified:
        return [listen]
    family = socket.AF_INET6 if wanted.version == 6 else socket.AF_INET
    every = [one.address for card in psutil.net_if_addrs().values() for one in card if one.family == family]
    return [one for one in every if "%" not in one and not ipaddress.ip_address(one).is_loopback]


def texts(me: PeerId, mesh: str, here: list[str]) -> dict[str | bytes, str | bytes | None]:
    """The text record: `mesh` (hash, hexadecimal), `peer`, and addresses `a0`, `a1`, ... without the peer id."""
    suffix = f"/p2p/{me}"
    short = [address.removesuffix(suffix) for address in here]
    numbered: dict[str | bytes, str | bytes | None] = {
        f"a{n}": address for n, address in enumerate(short[:ADDRESSES]) if len(address) < addresses.LONGEST - 5
    }
    return dict(mesh=mesh, peer=me, **numbered)


def read(properties: Any, mesh: str) -> tuple[PeerId, list[str]] | None:
    """Whom a text record tells of and where; None if it is of another mesh, or not understood."""
    said = {name: text for name, text in properties.items() if isinstance(name, bytes) and isinstance(text, bytes)}
    if said.get(b"mesh") != mesh.encode():
        return None
    places = [f"a{n}".encode() for n in range(ADDRESSES)]
    try:
        peer = PeerId(said[b"peer"].decode("ascii"))
        told = [said[place].decode("ascii") for place in places if place in said]
    except (KeyError, UnicodeDecodeError):
        return None
    return (peer, told) if addresses.of_mesh(peer) else None
