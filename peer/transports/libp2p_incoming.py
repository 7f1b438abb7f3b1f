"""What arrives on streams of frames: read at once, always, and put into the inbox. See `libp2p`."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_host
from veilmesh.peer.transports.base import Traffic
from veilmesh.peer.transports.framing import FrameReader
from veilmesh.peer.transports.inbox import Inbox

if TYPE_CHECKING:
    from libp2p.abc import INetStream

__all__ = ["Incoming"]

STRANGERS: Final = "strangers"  # peer ids cost nothing: whoever was not introduced has one share for all of them


class Incoming:
    """Handler of every stream of frames to one host.

    Args:
        inbox: where frames go.
        traffic: where streams that break the rules are counted.
        max_frame: the longest frame, in bytes.
        introduced: whether a peer is known.
    """

    def __init__(self, inbox: Inbox, traffic: Traffic, max_frame: int, introduced: Callable[[PeerId], bool]) -> None:
        self._inbox = inbox
        self._traffic = traffic
        self._max_frame = max_frame
        self._introduced = introduced
        self._streams: dict[PeerId, INetStream] = {}
        self._unfinished: Counter[PeerId] = Counter()  # bytes of frames that have begun and not ended, by stranger

    async def __call__(self, stream: "INetStream") -> None:
        """Frames into the inbox, until the stream ends."""
        sender = PeerId(str(stream.muxed_conn.peer_id))
        older = self._streams.get(sender)
        self._streams[sender] = stream
        if older is not None:  # a sender has one stream: the older one is broken, or a way to fill our memory
            await libp2p_host.give_up(older)
        reader = FrameReader(self._max_frame)
        try:
            while chunk := await libp2p_host.read(stream):
                known = self._introduced(sender)
                for frame in reader.feed(chunk):
                    self._inbox.offer(frame, sender if known else STRANGERS)
                self._hold(sender, 0 if known else reader.held)
        except RemoteError:
            self._traffic.refused += 1
        finally:
            del self._unfinished[sender]
            if self._streams.get(sender) is stream:
                del self._streams[sender]
            await libp2p_host.give_up(stream)

    def _hold(self, sender: PeerId, octets: int) -> None:
        """Raises RemoteError(OVERSIZED) if strangers together have begun more than one longest frame holds."""
        self._unfinished[sender] = octets
        if octets and self._unfinished.total() > self._max_frame:
            raise RemoteError(Refusal.OVERSIZED, "frames begun by strangers")
