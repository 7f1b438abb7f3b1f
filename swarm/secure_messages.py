"""What the members of a group say to each other while they sum without showing what they sum: see `secure_session`.

All name their `round`, and which of the round's sums they belong to: `number` (0, 1, ...). From `Masked` on they name
their `label` too: the hash of the members that mask against each other and of their keys, as the sender sees them.
Members are named by place in the group.
"""

from typing import Final, TypeAlias

import msgspec

__all__ = [
    "CARD", "LABEL", "LARGEST_GROUP", "SECRET", "Agreed", "Counted", "Enrol", "Masked", "Roll", "SumMessage", "Total",
    "Unmasked", "Withdrawn", "wrong_sum",
]  # fmt: skip

LARGEST_GROUP: Final = 64
SECRET: Final = 32
"""Bytes of a key, a seed, or a share of either."""
CARD: Final = 64
"""Bytes of what a member announces: its public key, and the hash of the seed of its own mask."""
LABEL: Final = 32


class Enrol(msgspec.Struct, frozen=True, array_like=True, tag="enrol", forbid_unknown_fields=True):
    """The sender's `card` for this sum, the same for everybody; and, for the receiver only, its shares of the seed of
    the sender's own mask and of the sender's private key."""

    round: int
    number: int
    card: bytes
    seed_share: bytes
    key_share: bytes


class Roll(msgspec.Struct, frozen=True, array_like=True, tag="roll", forbid_unknown_fields=True):
    """The cards that the sender has, with shares: one for every member, empty where it has none."""

    round: int
    number: int
    cards: tuple[bytes, ...]


class Masked(msgspec.Struct, frozen=True, array_like=True, tag="masked", forbid_unknown_fields=True):
    """Part number `part` of the sender's vector, masked: `words` are little-endian."""

    round: int
    number: int
    label: bytes
    part: int
    words: bytes


class Counted(msgspec.Struct, frozen=True, array_like=True, tag="counted", forbid_unknown_fields=True):
    """Whose masked parts the sender has, of those that it is to hold."""

    round: int
    number: int
    label: bytes
    members: tuple[int, ...]


class Agreed(msgspec.Struct, frozen=True, array_like=True, tag="agreed", forbid_unknown_fields=True):
    """Whom the sender takes for the survivors, for good: those that all count."""

    round: int
    number: int
    label: bytes
    members: tuple[int, ...]


class Unmasked(msgspec.Struct, frozen=True, array_like=True, tag="unmasked", forbid_unknown_fields=True):
    """What takes the masks off the sum: the sender's own seed, if it survives; and for every member, empty where it is
    none that masked, a share: of a survivor's seed, of another's private key."""

    round: int
    number: int
    label: bytes
    seed: bytes
    shares: tuple[bytes, ...]


class Total(msgspec.Struct, frozen=True, array_like=True, tag="total", forbid_unknown_fields=True):
    """Part number `part` of the survivors' sum."""

    round: int
    number: int
    label: bytes
    part: int
    words: bytes


class Withdrawn(msgspec.Struct, frozen=True, array_like=True, tag="withdrawn", forbid_unknown_fields=True):
    """The sender has given this sum up: nobody need wait for it."""

    round: int
    number: int


SumMessage: TypeAlias = Enrol | Roll | Masked | Counted | Agreed | Unmasked | Total | Withdrawn

_NUMBERS = 1 << 16


def wrong_sum(message: object) -> str | None:
    """What is out of shape or range in a message of a sum; None for any other message."""
    if not isinstance(message, SumMessage):
        return None
    if not 0 <= message.number < _NUMBERS:
        return "a sum out of range"
    if not isinstance(message, Enrol | Roll | Withdrawn) and len(message.label) != LABEL:
        return "a label of another length"
    match message:
        case Enrol(card=card, seed_share=one, key_share=other):
            return None if (len(card), len(one), len(other)) == (CARD, SECRET, SECRET) else "no card with two shares"
        case Roll(cards=cards):
            return _lengths(cards, CARD)
        case Masked(part=part) | Total(part=part):
            return None if 0 <= part < LARGEST_GROUP else "a part out of range"
        case Counted(members=members) | Agreed(members=members):
            rising = all(a < b for a, b in zip(members, members[1:], strict=False))
            inside = all(0 <= member < LARGEST_GROUP for member in members)
            return None if rising and inside else "members out of range or order"
        case Unmasked(seed=seed, shares=shares):
            return _lengths((seed,), SECRET) or _lengths(shares, SECRET)
    return None


def _lengths(pieces: tuple[bytes, ...], length: int) -> str | None:
    if len(pieces) > LARGEST_GROUP:
        return "more members than a group has"
    return None if all(len(piece) in (0, length) for piece in pieces) else "a piece of another length"
