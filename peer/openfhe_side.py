"""Threshold BFV and CKKS in a process of its own: OpenFHE's wheels fit other interpreters than this project's.

Run by its path under any Python from 3.10 on that can `import openfhe`; it imports nothing else that is not in the
standard library. Lists of byte strings come in and go out by the pipe: a count, then each with its length, u32
big-endian. The first says what is wanted, or "ok", or "error". It ends when its input does. The key share it makes
stays here. OpenFHE's deserialiser trusts its input: that is one more reason for a process which can die alone.
"""

import os
import resource
import struct
import sys
from array import array
from collections.abc import Callable
from typing import Any, BinaryIO

__all__ = ["main"]

MEMORY = 4 << 30  # bytes of address space: what a lying length could ask for


class Side:
    """One party: its context, its key share, the group's public key. `scheme`: "bfv" or "ckks"; `size`: the plain
    modulus of the one, the bits of the scale of the other."""

    def __init__(self, openfhe: Any, scheme: str, size: int, parties: int) -> None:
        self.openfhe, self.modulus, self.approximate = openfhe, size, scheme == "ckks"
        parameters = openfhe.CCParamsCKKSRNS() if self.approximate else openfhe.CCParamsBFVRNS()
        parameters.SetMultiplicativeDepth(0)
        parameters.SetSecurityLevel(openfhe.SecurityLevel.HEStd_128_classic)
        if self.approximate:
            # With the library's own choice of technique no noise is seen in what comes out: none floods it.
            parameters.SetScalingTechnique(openfhe.ScalingTechnique.FIXEDMANUAL)
            parameters.SetScalingModSize(size)
            parameters.SetFirstModSize(60)
        else:
            parameters.SetPlaintextModulus(size)
            parameters.SetThresholdNumOfParties(parties)
            parameters.SetMultipartyMode(openfhe.MultipartyMode.NOISE_FLOODING_MULTIPARTY)
        self.context = openfhe.GenCryptoContext(parameters)
        for feature in ("PKE", "KEYSWITCH", "LEVELEDSHE", "ADVANCEDSHE", "MULTIPARTY"):
            self.context.Enable(getattr(openfhe.PKESchemeFeature, feature))

    @property
    def slots(self) -> int:
        """Numbers in a ciphertext."""
        degree: int = self.context.GetRingDimension()
        return degree // 2 if self.approximate else degree

    def common(self) -> list[bytes]:
        """A public key that is used for its random half alone; nobody keeps its secret."""
        return [self._bytes(self.context.KeyGen().publicKey), struct.pack("!I", self.slots)]

    def share(self, common: bytes) -> list[bytes]:
        self.pair = self.context.MultipartyKeyGen(self._key(common), False, True)
        return [self._bytes(self.pair.publicKey)]

    def join(self, *shares: bytes) -> list[bytes]:
        keys = [self._key(raw) for raw in shares]
        self.joint = keys[0]
        for key in keys[1:]:
            self.joint = self.context.MultiAddPubKeys(self.joint, key, "")
        return []

    def encrypt(self, *chunks: bytes) -> list[bytes]:
        return [self._bytes(self.context.Encrypt(self.joint, self._plain(raw))) for raw in chunks]

    def add(self, *ciphertexts: bytes) -> list[bytes]:
        total = self._ciphertext(ciphertexts[0])
        for raw in ciphertexts[1:]:
            total = self.context.EvalAdd(total, self._ciphertext(raw))
        return [self._bytes(total)]

    def partial(self, lead: bytes, *totals: bytes) -> list[bytes]:
        decrypt = self.context.MultipartyDecryptLead if lead == b"lead" else self.context.MultipartyDecryptMain
        return [self._bytes(part) for part in decrypt([self._ciphertext(raw) for raw in totals], self.pair.secretKey)]

    def fuse(self, *partials: bytes) -> list[bytes]:
        plain = self.context.MultipartyDecryptFusion([self._ciphertext(raw) for raw in partials])
        plain.SetLength(self.slots)
        if self.approximate:
            return [array("d", plain.GetRealPackedValue()).tobytes()]
        values = plain.GetPackedValue()
        return [array("q", [value % self.modulus for value in values]).tobytes()]

    def _plain(self, raw: bytes) -> Any:
        if self.approximate:
            return self.context.MakeCKKSPackedPlaintext(array("d", raw).tolist())
        return self.context.MakePackedPlaintext(array("q", raw).tolist())

    def _bytes(self, thing: Any) -> bytes:
        raw: bytes = self.openfhe.Serialize(thing, self.openfhe.BINARY)
        return raw

    def _key(self, raw: bytes) -> Any:
        return self.openfhe.DeserializePublicKeyString(raw, self.openfhe.BINARY)

    def _ciphertext(self, raw: bytes) -> Any:
        return self.openfhe.DeserializeCiphertextString(raw, self.openfhe.BINARY)


def _receive(source: BinaryIO) -> list[bytes] | None:
    head = source.read(4)
    if len(head) < 4:
        return None
    return [source.read(*struct.unpack("!I", source.read(4))) for _ in range(*struct.unpack("!I", head))]


def _send(sink: BinaryIO, parts: list[bytes]) -> None:
    sink.write(struct.pack("!I", len(parts)))
    for part in parts:
        sink.write(struct.pack("!I", len(part)) + part)
    sink.flush()


def main() -> None:
    """Serve one party; arguments: the scheme, its size (see `Side`), and how many parties there are."""
    import openfhe  # here, so that reading this file takes no more than the standard library

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the key share
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints is no answer
    side, source = Side(openfhe, sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), sys.stdin.buffer
    asked: dict[bytes, Callable[..., list[bytes]]] = {
        b"common": side.common, b"share": side.share, b"join": side.join, b"encrypt": side.encrypt, b"add": side.add,
        b"partial": side.partial, b"fuse": side.fuse,
    }  # fmt: skip
    while (parts := _receive(source)) is not None:
        try:
            answer = [b"ok", *asked[parts[0]](*parts[1:])]
        except Exception as error:  # noqa: BLE001  # the process edge: the asking process decides
            answer = [b"error", f"{type(error).__name__}: {error}".encode()[:500]]
        _send(sink, answer)


if __name__ == "__main__":
    main()
