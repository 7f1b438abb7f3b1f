"""What other libp2p programs ask of any host: who it is (identify), and whether it is there (ping).

Only answers: what others say of themselves is never asked for, so it cannot find its way into our address book
(libp2p specification, identify and ping). Who is asked tells a stranger its protocols and addresses.
"""

from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_host
from veilmesh.peer.transports.libp2p_talk import tell

if TYPE_CHECKING:
    from libp2p.abc import IHost, INetStream

__all__ = ["IDENTIFY", "PING", "PING_BYTES", "Identify", "pong"]

IDENTIFY: Final = "/ipfs/id/1.0.0"
PING: Final = "/ipfs/ping/1.0.0"
PING_BYTES: Final = 32


class Identify:
    """Says who this host is to whoever opens a stream, and ends it.

    Args:
        addresses: asked every time where this host can be reached, as multiaddrs with its peer id.
    """

    def __init__(self, addresses: Callable[[], list[str]]) -> None:
        self._addresses = addresses
        self.host: IHost | None = None

    async def __call__(self, sender: PeerId, stream: "INetStream") -> None:
        if self.host is not None:
            await tell(stream, self._card(self.host, stream))
        await libp2p_host.attempt(stream.close())

    def _card(self, host: "IHost", stream: "INetStream") -> Any:
        from libp2p.identity.identify.pb.identify_pb2 import Identify as Message
        from multiaddr import Multiaddr

        name = f"/p2p/{host.get_id()}"  # the asker knows it: what is listed are addresses without it
        return Message(
            protocol_version="ipfs/0.1.0",
            agent_version=f"veilmesh/{metadata.version('veilmesh')}",
            public_key=host.get_public_key().serialize(),
            listen_addrs=[Multiaddr(one.removesuffix(name)).to_bytes() for one in self._addresses()],
            protocols=sorted(str(protocol) for protocol in host.get_mux().get_protocols() if protocol),
        )


async def pong(sender: PeerId, stream: "INetStream") -> None:
    """Say every 32 bytes again, until the other side says no more."""
    held = b""
    while chunk := await libp2p_host.read(stream):
        held += chunk
        whole = len(held) - len(held) % PING_BYTES
        if whole and not await libp2p_host.write(stream, held[:whole]):
            break
        held = held[whole:]
    await libp2p_host.attempt(stream.close())
