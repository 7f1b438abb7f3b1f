"""A message's body as one of a protocol's messages: every protocol reads what strangers send in the same way."""

from typing import TypeVar

import msgspec

from veilmesh.core import Refusal, RemoteError

__all__ = ["strictly"]

T = TypeVar("T")


def strictly(decoder: "msgspec.msgpack.Decoder[T]", body: bytes) -> T:
    """The message in `body`. Raises RemoteError(MALFORMED) if there is none of the decoder's."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the latter for a tag that is not UTF-8
        # The decoder repeats what it could not read; a sender's own words have no place in a record or on a terminal.
        detail = "none of the messages" if "Invalid value" in str(error) else str(error)[:200]
        raise RemoteError(Refusal.MALFORMED, detail) from None
