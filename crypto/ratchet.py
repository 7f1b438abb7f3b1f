"""A chain of keys along the frames of a one-way session: whoever takes the key of now cannot go back to an earlier one.

Frame number s belongs to epoch s // 16, so the wire carries no more than it did. Every epoch has a key of its own:

    sealing key of epoch e = HMAC-SHA256(chain key e, "... seal")
    chain key e + 1        = HMAC-SHA256(chain key e, "... next")

and a chain key is deleted when it has been stepped over (the symmetric-key ratchet of the Signal specification, with
epochs in place of single messages). It looks forward only: whoever has a chain key has all that follow, until its peer
starts anew. Deleted means that nothing refers to it any more; CPython does not overwrite the memory it frees.
"""

import hmac
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from veilmesh.core import Refusal, RemoteError

__all__ = ["EPOCH_FRAMES", "LEAP", "Chain", "epoch_of"]

EPOCH_FRAMES: Final = 16
"""Frames that share a key, heartbeats and goodbyes included."""

LEAP: Final = 4096
"""How many epochs a reader follows a writer whose frames were all lost: 65 536 frames, and milliseconds of hashing for
one frame that an admitted peer made up."""

_SEAL = b"veilmesh ratchet v1 seal\x00"
_NEXT = b"veilmesh ratchet v1 next\x00"


def epoch_of(sequence: int) -> int:
    """The epoch that frame number `sequence` is sealed in."""
    return sequence // EPOCH_FRAMES


class Chain:
    """The keys of one direction: those of epochs whose frames may still come, and the chain key of the next epoch."""

    __slots__ = ("_ciphers", "_key", "reached")

    def __init__(self, root: bytes) -> None:
        self._key: bytes | None = root  # of the epoch `reached`; None once no further epoch will come
        self.reached = 0  # the first epoch that was not stepped over
        self._ciphers: dict[int, AESGCM] = {}

    def cipher(self, sequence: int) -> AESGCM:
        """The cipher of a frame; changes nothing. Raises RemoteError(BAD_SEAL): that key is deleted, or too far off."""
        epoch = epoch_of(sequence)
        if (known := self._ciphers.get(epoch)) is not None:
            return known
        ahead = epoch - self.reached
        if self._key is None or not 0 <= ahead < LEAP:
            raise RemoteError(Refusal.BAD_SEAL, f"epoch {epoch}, whose key is not to be had")
        return _cipher(_stepped(self._key, ahead))

    def reach(self, sequence: int, oldest: int) -> None:
        """Step over the epoch of `sequence`, and keep no key of epochs that end before frame number `oldest`."""
        epoch = epoch_of(sequence)
        first = max(self.reached, epoch_of(max(oldest, 0)))
        if self._key is not None and self.reached <= epoch:
            self._key = _stepped(self._key, first - self.reached)
            for kept in range(first, epoch + 1):
                self._ciphers[kept] = _cipher(self._key)
                self._key = _stepped(self._key, 1)
            self.reached = max(first, epoch + 1)
        for old in [e for e in self._ciphers if (e + 1) * EPOCH_FRAMES <= oldest]:
            del self._ciphers[old]

    def close(self, sequence: int, oldest: int) -> None:
        """No epoch after that of `sequence` will come: delete the chain key, and keep what `reach` keeps."""
        self.reach(sequence, oldest)
        self._key = None

    def drop(self, sequence: int) -> None:
        """Every frame of `sequence`'s epoch has been taken: delete its key."""
        self._ciphers.pop(epoch_of(sequence), None)

    def write(self, sequence: int) -> AESGCM:
        """The cipher to seal frame `sequence` with, by the one who counts them; what came before is deleted."""
        if epoch_of(sequence) >= self.reached:
            self.reach(sequence, oldest=sequence)
        cipher = self._ciphers[epoch_of(sequence)]
        if (sequence + 1) % EPOCH_FRAMES == 0:
            self.drop(sequence)
        return cipher


def _cipher(key: bytes) -> AESGCM:
    return AESGCM(hmac.digest(key, _SEAL, "sha256"))


def _stepped(key: bytes, steps: int) -> bytes:
    for _ in range(steps):
        key = hmac.digest(key, _NEXT, "sha256")
    return key
