"""Where OpenFHE runs: a side process on an interpreter that has it, for `crypto.threshold`.

`VEILMESH_OPENFHE_PYTHON` names the interpreter; without it, this one is asked. As of OpenFHE 1.6.1 its wheels hold
modules for CPython 3.10 (glibc 2.34 or so) or 3.12 (glibc 2.38), under a tag that lets any Python install them.
"""

import contextlib
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError

__all__ = ["VARIABLE", "SideProcess", "interpreter"]

VARIABLE: Final = "VEILMESH_OPENFHE_PYTHON"
_PROGRAM: Final = Path(__file__).with_name("openfhe_side.py")
_PROBE: Final = "import openfhe; openfhe.CCParamsBFVRNS"
_REMOTE: Final = frozenset({"share", "join", "add", "partial", "fuse"})  # what is asked with remote bytes in it


def interpreter(named: str | None = None) -> str:
    """The Python that runs OpenFHE: `named`, else what the environment names, else this one.

    Raises BadInput, with what is wrong and what to do, if it cannot import it.
    """
    python = named or os.environ.get(VARIABLE) or sys.executable
    try:
        found = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"{python} cannot be run ({error}); let {VARIABLE} name a Python that has OpenFHE.") from None
    if found.returncode:
        said = (found.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise BadInput(
            f"{python} has no OpenFHE ({said}); make an environment of Python 3.10, run 'pip install "
            f"openfhe==1.6.1.0.22.4' in it, and let {VARIABLE} name its interpreter."
        )
    return python


class SideProcess:
    """One party's OpenFHE, isolated from the folder its program lies in (-I).

    Use it as a context: the process, and the key share in it, end with it.

    `scheme`: its name and size, as `crypto.threshold` says them; `patience`: seconds a request may take; what takes
    longer is ended.
    """

    def __init__(self, python: str, scheme: tuple[str, int], parties: int, patience: float = 120.0) -> None:
        command = [python, "-I", str(_PROGRAM), scheme[0], str(scheme[1]), str(parties)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._patience = patience
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )

    def __enter__(self) -> "SideProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                with contextlib.suppress(BrokenPipeError):
                    end.close()

    def ask(self, what: str, parts: Sequence[bytes]) -> list[bytes]:
        """The answer to a request.

        Raises RemoteError(MALFORMED) where the library, or its process, could not digest a remote peer's bytes;
        LocalError if there were none.
        """
        watch = threading.Timer(self._patience, self._process.kill)
        watch.start()
        try:
            answer = self._exchange([what.encode(), *parts])
        finally:
            watch.cancel()
        if answer and answer[0] == b"ok":
            return answer[1:]
        said = answer[1].decode(errors="replace") if answer else "its process has ended"
        if what in _REMOTE:
            raise RemoteError(Refusal.MALFORMED, f"OpenFHE could not {what}: {said}")
        raise LocalError(f"OpenFHE could not {what}: {said}")

    def _exchange(self, parts: Sequence[bytes]) -> list[bytes]:
        """The answer; empty if the process has ended."""
        sink, source = self._process.stdin, self._process.stdout
        assert sink is not None
        assert source is not None
        with contextlib.suppress(BrokenPipeError):
            sink.write(struct.pack("!I", len(parts)))
            for part in parts:
                sink.write(struct.pack("!I", len(part)))
                sink.write(part)
            sink.flush()
        head = source.read(4)
        if len(head) < 4:
            return []
        return [_exactly(source.read) for _ in range(*struct.unpack("!I", head))]


def _exactly(read: Callable[[int], bytes]) -> bytes:
    head = read(4)
    return read(*struct.unpack("!I", head)) if len(head) == 4 else b""
