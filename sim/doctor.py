"""What this machine has, what it lacks, and what each missing thing would give: the facts behind `veilmesh doctor`.

Everything is looked up, nothing is imported or started: versions come from the installed packages' own metadata,
programs from the search path. So an examination takes milliseconds, and a broken package cannot break it.
"""

import ctypes
import os
import platform
import re
import shutil
import socket
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

import psutil

from veilmesh.peer.confinement import can_hold_cores, can_hold_memory
from veilmesh.peer.openfhe_process import VARIABLE as OPENFHE_VARIABLE

__all__ = ["Finding", "examine"]

OLDEST_PYTHON = (3, 11)
PORTS = 32  # a laboratory mesh opens one listening port a peer
GIB = 1 << 30

UNUSED = "not used by this release"
LATER = "nothing to do yet"
EXTRAS = {
    "datasets": ("data sets by name from the Hugging Face hub", "pip install 'veilmesh[hub]'"),
    "tensorboardX": ("TensorBoard files of a run", "pip install 'veilmesh[tensorboard]'"),
    "tenseal": ("homomorphic sums of updates, and split mode on ciphertexts", "pip install 'veilmesh[he]'"),
    "opacus": ("the epsilon of private training", "pip install 'veilmesh[privacy]'"),
    "transformers": ("labels of public pictures by CLIP, its weights on disk", "pip install transformers"),
    "ray": (f"studies spread over a cluster; {UNUSED}", LATER),
    "aiomqtt": ("peers that meet through an MQTT broker", "pip install 'veilmesh[mqtt]'"),
    "amqtt": (
        "an MQTT broker for meshes on one machine where mosquitto is not installed; it speaks 3.1.1, not MQTT 5, knows "
        "no users, and keeps nothing when it ends",
        "pip install 'veilmesh[mqtt]'",
    ),
}
PROGRAMS = {
    "chromium": (("chromium", "chromium-browser", "google-chrome"), "the test that opens a report in a real browser"),
    "mosquitto": (
        ("mosquitto",),
        "the MQTT broker that `veilmesh broker` and `veilmesh up --transport mqtt` start: users, access lists, MQTT 5",
    ),
    "iproute2": (("ip",), f"slow and lossy links between real peers; {UNUSED}"),
}
NEEDED = ("python", "torch", "libp2p", "loopback ports")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for: whether it is there, what it gives, and how to get it where it is not."""

    name: str
    present: bool
    version: str | None
    gives: str
    how: str

    @property
    def used(self) -> bool:
        """Whether this release makes use of it."""
        return UNUSED not in self.gives

    @property
    def needed(self) -> bool:
        """Whether nothing trains without it."""
        return self.name in NEEDED


def examine() -> list[Finding]:
    """Every finding about this machine, in the order in which a reader needs them."""
    return [
        _python(),
        _torch(),
        _accelerator(),
        _libp2p(),
        *(_extra(name, gives, how) for name, (gives, how) in EXTRAS.items()),
        _openfhe(),
        *(_program(name, any_of, gives) for name, (any_of, gives) in PROGRAMS.items()),
        _cores(),
        _memory(),
        _ports(),
        _user_timeout(),
        _parent_death(),
        _edge_device(),
    ]


def _python() -> Finding:
    wanted = ".".join(map(str, OLDEST_PYTHON))
    present = sys.version_info[:2] >= OLDEST_PYTHON
    return Finding("python", present, platform.python_version(), "everything", f"install Python {wanted} or newer")


def _torch() -> Finding:
    found = _installed("torch")
    return Finding(
        "torch", found is not None, found, "training, attacks and scores", "make install, or pip install torch"
    )


def _openfhe() -> Finding:
    """It runs in a Python of its own: no wheel of it fits an interpreter that veilmesh runs on."""
    named = os.environ.get(OPENFHE_VARIABLE)
    found = shutil.which(named) if named else None
    how = (
        "make an environment of Python 3.10, 'pip install openfhe==1.6.1.0.22.4' in it, and let "
        f"{OPENFHE_VARIABLE} name its interpreter"
    )
    return Finding("openfhe", found is not None, found, "threshold sums, which no single peer can decrypt", how)


def _accelerator() -> Finding:
    """A GPU counts where the driver is there and the installed torch was built for it."""
    cuda = _cuda_of_torch()
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Finding(
            "gpu", _installed("torch") is not None, "mps", "faster inversions of large models", "install torch"
        )
    driver = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
    how = "install a CUDA build of torch" if driver else "use a machine with a GPU; nothing here needs one"
    named = f"cuda {cuda}" if driver and cuda else None
    return Finding("gpu", named is not None, named, "faster inversions of large models", how)


def _libp2p() -> Finding:
    """The hardening patches one exact release and refuses any other; the release is the one in our own metadata."""
    found, wanted = _installed("libp2p"), _pinned("libp2p")
    present = found is not None and wanted in {None, found}
    how = f"pip install libp2p=={wanted}" if wanted else "pip install libp2p"
    return Finding("libp2p", present, found, "peers as real processes over TCP, Noise and Yamux", how)


def _extra(name: str, gives: str, how: str) -> Finding:
    found = _installed(name)
    return Finding(name, found is not None, found, gives, how)


def _program(name: str, any_of: tuple[str, ...], gives: str) -> Finding:
    # Debian keeps servers and network tools where only root's search path leads.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    present = any(shutil.which(program, path=path) for program in any_of)
    return Finding(
        name, present, None, gives, LATER if UNUSED in gives else f"make system, or install the package {name}"
    )


def _cores() -> Finding:
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux can say which cores this process may use
        count = os.cpu_count() or 1
    return Finding(
        "cores", count >= 2, str(count), "peers that train at the same time", "use a machine with two or more"
    )


def _memory() -> Finding:
    total = psutil.virtual_memory().total / GIB
    how = "use fewer peers; each costs about 20 MiB, and the process they are forked from 0.4 GiB"
    return Finding("memory", total >= 2, f"{total:.1f} GiB", "room for the peers and for one inversion", how)


def _ports() -> Finding:
    free = _free_ports(PORTS)
    how = "allow listening sockets on 127.0.0.1"
    return Finding("loopback ports", free == PORTS, f"{free} of {PORTS}", "a local mesh: one port a peer", how)


def _free_ports(wanted: int) -> int:
    """How many of `wanted` sockets can listen on loopback at once."""
    with ExitStack() as stack:
        for count in range(wanted):
            try:
                listener = stack.enter_context(socket.socket())
                listener.bind(("127.0.0.1", 0))
                listener.listen()
            except OSError:
                return count
    return wanted


def _user_timeout() -> Finding:
    present = hasattr(socket, "TCP_USER_TIMEOUT")
    gives = "a silent neighbour is noticed within seconds, not within minutes"
    return Finding("TCP_USER_TIMEOUT", present, None, gives, "use Linux")


def _parent_death() -> Finding:
    """prctl(PR_SET_PDEATHSIG): the kernel ends a peer when the process that started it is gone, however it went."""
    present = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "prctl")
    gives = "no peer is left behind when `veilmesh up` itself is killed"
    return Finding("prctl", present, None, gives, "use Linux")


def _edge_device() -> Finding:
    """The limits of edge devices. A link is slowed down anywhere: by a process in front of a peer's port."""
    limits = {"cores": can_hold_cores(), "memory": can_hold_memory(), "link": True}
    held = [limit for limit, can in limits.items() if can]
    gives = "peers held to an edge device's cores, memory and link"
    return Finding("edge device", len(held) == len(limits), ", ".join(held), gives, "use Linux")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _pinned(name: str) -> str | None:
    """The exact version of `name` that veilmesh asks for, or None where it names none or is not installed itself."""
    try:
        asked = requires("veilmesh") or []
    except PackageNotFoundError:
        return None
    pins = (re.fullmatch(rf"{name}==([\w.]+)", line.split(";")[0].strip()) for line in asked)
    return next((pin[1] for pin in pins if pin), None)


def _cuda_of_torch() -> str | None:
    """The CUDA version that the installed torch was built for, read from its version file without importing it."""
    try:
        text = Path(str(distribution("torch").locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError):
        return None
    found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, flags=re.MULTILINE)
    return found[1] if found else None
