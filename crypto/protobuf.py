"""As much of protobuf's encoding as TenSEAL's messages take: to write some, and to take apart what this process wrote.

Never for remote bytes: nothing here is checked. (TenSEAL's messages: tensors.proto, tensealcontext.proto.)
"""

from veilmesh.core import LocalError

__all__ = ["field", "first_field", "varint"]


def varint(value: int) -> bytes:
    """A number in groups of seven bits, the lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def _fields(raw: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields at the start of a protobuf message that this process wrote."""
    found, at = [], 0
    while at < len(raw) and raw[at] & 7 == 2:
        number, size, shift, at = raw[at] >> 3, 0, 0, at + 1
        while True:
            byte, at = raw[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        found.append((number, raw[at : at + size]))
        at += size
    return found


def first_field(raw: bytes, number: int) -> bytes:
    """The first length-delimited field of this number. Raises LocalError if there is none."""
    for found, value in _fields(raw):
        if found == number:
            return value
    raise LocalError("TenSEAL's serialisation has changed: only that of its version 0.3 is known here")
