"""One payload of 10 MB from process to process over libp2p: as veilmesh carries it, and as py-libp2p does by itself.

Each sender is a process of its own; the receiver answers every payload with one byte once it has all of it in one
buffer. veilmesh is measured twice: the transport alone, and with the envelope (signed and sealed, opened and checked).
The systems take turns, so that a machine whose speed changes changes it for all; the figure of each is the median over
turns. `--hivemind PYTHON`: the Go daemon that hivemind ships, driven from that environment. Everything is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
SYSTEMS = ("veilmesh", "veilmesh sealed", "stock")


def once(python: Path, system: str, octets: int, count: int) -> float | None:
    """MB/s of one turn; None where it did not come to an end."""
    command = [str(python), str(HERE / "payloads.py"), system, str(octets), str(count)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        sys.stderr.write(done.stderr[-2000:])
        return None
    return float(json.loads(done.stdout.splitlines()[-1])["mb_per_second"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--count", type=int, default=20, help="payloads a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--hivemind", type=Path, help="the interpreter of an environment with hivemind")
    asked = parser.parse_args()
    octets = int(asked.megabytes * 1e6)
    pythons = {name: Path(sys.executable) for name in SYSTEMS}
    if asked.hivemind and asked.hivemind.exists():
        pythons["hivemind p2pd"] = asked.hivemind
    speeds: dict[str, list[float]] = {name: [] for name in pythons}
    for _ in range(asked.turns):
        for name, python in pythons.items():
            if (speed := once(python, name, octets, asked.count)) is not None:
                speeds[name].append(speed)
    stock = statistics.median(speeds["stock"]) if speeds["stock"] else None
    print(f"{'payload of ' + format(asked.megabytes, 'g') + ' MB':20} {'MB/s':>8} {'best':>8} {'of stock':>9}")
    for name, found in speeds.items():
        if not found:
            print(f"{name:20} no result")
            continue
        middle = statistics.median(found)
        print(f"{name:20} {middle:8.0f} {max(found):8.0f} {f'{middle / stock:8.2f}x' if stock else '-':>9}")


if __name__ == "__main__":
    main()
