"""mosquitto: where it is installed, and its configuration (mosquitto.conf(5), version 2) written into a folder."""

import os
import pwd
import secrets
import shutil
from pathlib import Path
from typing import Final

from veilmesh.core import BadInput
from veilmesh.peer.brokers.access import access_lists, password_lines
from veilmesh.peer.brokers.certificates import AUTHORITY, BROKER_CERTIFICATE, BROKER_KEY, certify
from veilmesh.peer.brokers.settings import BrokerSettings
from veilmesh.peer.store import write_durably, writing

__all__ = ["CONFIGURATION", "USERS", "find_mosquitto", "known_users", "prepare_folder", "write_configuration"]

CONFIGURATION: Final = "mosquitto.conf"
USERS: Final = "users"
"""The folder of passwords: a file for each user, which `transport.password_file` can name."""

_ACCESS, _PASSWORDS = "access", "passwords"
# Debian keeps servers where only root's search path leads.
_BESIDES: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


def find_mosquitto() -> str | None:
    """The path of the program, if it is installed."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_BESIDES]))


def prepare_folder(folder: Path) -> None:
    """Make the folder of a broker, for its owner only. Raises BadInput."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def known_users(folder: Path) -> tuple[str, ...]:
    """Whoever was given a password in this folder before."""
    return tuple(sorted(path.name for path in (folder / USERS).glob("*") if path.is_file()))


def write_configuration(folder: Path, settings: BrokerSettings) -> list[Path]:
    """Write everything that mosquitto needs into `folder`; the files, those with secrets readable by the owner only.

    A user that has a password keeps it, and so does the certificate authority its key. Raises BadInput.
    """
    prepare_folder(folder)
    home = folder.resolve()
    if any(ord(sign) < 32 for sign in str(home)):
        raise BadInput("A folder whose name has control characters cannot stand in mosquitto.conf; take another.")
    made = {
        home / _ACCESS: access_lists(settings.prefix, settings.users),
        home / CONFIGURATION: _configuration(home, settings),
    }
    if settings.users:
        made[home / _PASSWORDS] = password_lines({user: _password(home, user) for user in settings.users})
    if settings.tls:
        certify(home, settings.known_as)
    for path, text in made.items():
        write_durably(path, text.encode(), mode=0o600)
    made_besides = [home / name for name in (AUTHORITY, BROKER_CERTIFICATE, BROKER_KEY)] if settings.tls else []
    files = [*made, *made_besides, *(home / USERS / user for user in settings.users)]
    return [folder / path.relative_to(home) for path in files]


def _password(home: Path, user: str) -> str:
    """The one that is kept for this user, or one that is drawn now."""
    path = home / USERS / user
    if not path.exists():
        with writing(path):
            path.parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(path, f"{secrets.token_urlsafe(24)}\n".encode(), mode=0o600)
    with writing(path):
        return path.read_text(encoding="utf-8").split("\n", 1)[0].strip()


def _configuration(home: Path, settings: BrokerSettings) -> str:
    limits, users = settings.limits, settings.users
    lines = [
        f"user {pwd.getpwuid(os.getuid()).pw_name}",  # started by root, it would give up what it needs to read these
        "log_dest stdout",
        *(f"log_type {kind}" for kind in ("error", "warning", "notice")),
        "connection_messages false",
        f"persistence {_said(settings.keeps)}",
        f"persistence_location {home}/",
        f"message_size_limit {limits.message_bytes}",
        f"max_inflight_messages {limits.inflight}",
        f"max_queued_messages {limits.queued_messages}",
        f"max_queued_bytes {limits.queued_bytes}",
        "persistent_client_expiration 1d",
        "set_tcp_nodelay true",
        "per_listener_settings false",
        f"allow_anonymous {_said(not users)}",
        f"acl_file {home / _ACCESS}",
        *([f"password_file {home / _PASSWORDS}"] if users else []),
        f"listener {settings.port} {settings.host}",
        f"max_connections {limits.connections}",
        *(["use_username_as_clientid true"] if settings.holds_sessions else []),
    ]
    if settings.tls:
        lines += [f"certfile {home / BROKER_CERTIFICATE}", f"keyfile {home / BROKER_KEY}", "tls_version tlsv1.2"]
    return "\n".join(lines) + "\n"


def _said(yes: bool) -> str:
    return "true" if yes else "false"
