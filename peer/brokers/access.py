"""Who may do what at a mosquitto: its password file and its access lists, as text. Pure but for the drawing of salts.

The topics are those of `mqtt_names`: PREFIX/to/RECEIVER/SENDER and PREFIX/presence/PEER. MQTT's client id is what a
client claims, so only the user name, which a password goes with, can hold anybody to anything.

A denial is silent: mosquitto acknowledges what it throws away, and grants subscriptions it never serves.
"""

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from os import urandom
from typing import Final

from veilmesh.peer.brokers.settings import is_peer

__all__ = ["access_lists", "password_lines"]

_ROUNDS: Final = 20_000  # of PBKDF2; what is hashed has 192 bits of its own
_SALT_BYTES: Final = 12  # what mosquitto 2 takes, no other number

_OWN_NAME: Final = """\
pattern write {0}/to/+/%u
pattern read {0}/to/%u/+
pattern write {0}/presence/%u
pattern read {0}/presence/+
"""
_ANY_NAME: Final = """\
topic readwrite {0}/to/+/+
topic readwrite {0}/presence/+
"""


def access_lists(prefix: str, users: Sequence[str]) -> str:
    """The `acl_file`: every user that is a peer has its own name only; what comes first is for who gives no name."""
    if not users:
        return _ANY_NAME.format(prefix)
    shared = [f"\nuser {user}\n{_ANY_NAME.format(prefix)}" for user in users if not is_peer(user)]
    return _OWN_NAME.format(prefix) + "".join(shared)


def password_lines(passwords: Mapping[str, str]) -> str:
    """The `password_file`, as `mosquitto_passwd` writes it: PBKDF2 with SHA-512."""
    return "".join(f"{user}:{_hashed(password)}\n" for user, password in passwords.items())


def _hashed(password: str) -> str:
    salt = urandom(_SALT_BYTES)
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ROUNDS, 64)
    return f"$7${_ROUNDS}${b64encode(salt).decode()}${b64encode(key).decode()}"
