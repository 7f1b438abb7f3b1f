"""One peer's keys in `blind_proxy`: its own pair, and the others' public halves, by the round they are good from."""

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.homomorphic import Keys, Scheme
from veilmesh.peer.machine import PeerId

__all__ = ["Keyring"]


class Keyring:
    """Keys that change every `rekey` rounds (0: never).

    A term is the first round that a key is good for. Others are heard of this term, the one before (whose sums may be
    under way) and the next one.
    """

    def __init__(self, rekey: int, scheme: Scheme) -> None:
        self._rekey, self._scheme = rekey, scheme
        self._own: dict[int, Keys] = {}
        self._publics: dict[int, dict[PeerId, bytes]] = {}

    def term(self, round_: int) -> int:
        """The round from which the keys of `round_` are good."""
        return round_ - round_ % self._rekey if self._rekey else 0

    def own(self, round_: int) -> Keys | None:
        """This peer's pair in a round, if it has been drawn."""
        return self._own.get(self.term(round_))

    def public(self, round_: int, peer: PeerId) -> bytes | None:
        """Another's public key in a round, if it has been said."""
        return self._publics.get(self.term(round_), {}).get(peer)

    def drawn(self, round_: int, keys: Keys) -> None:
        """Our pair of this term; those of earlier ones are forgotten: what was encrypted under them stays closed, even
        to who takes this peer over tomorrow."""
        self._own = {round_: keys}
        self._publics = {t: said for t, said in self._publics.items() if t >= round_ - self._rekey}

    def check(self, round_: int, sender: PeerId, public: bytes, now: int) -> None:
        """Raises RemoteError for a key that cannot be of a term near round `now`, or not the one it said before."""
        near = range(self.term(now) - self._rekey, self.term(now) + self._rekey + 1)
        if round_ not in near or round_ != self.term(round_):
            raise RemoteError(Refusal.MISMATCH, f"a key from round {round_} on while we are in {now}")
        self._scheme.check_public(public)
        if self.public(round_, sender) not in (None, public):
            raise RemoteError(Refusal.MISMATCH, "a second key for the same rounds")

    def take(self, round_: int, sender: PeerId, public: bytes) -> None:
        """Keep what was checked."""
        self._publics.setdefault(round_, {})[sender] = public
