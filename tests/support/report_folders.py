"""Folders of runs and studies as the study runner writes them, made up: for the tests of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ARMS = {"swarm": (18.2, "peer:3", 3), "star": (17.9, "server", 5), "defended": (2.3, "peer:3", 3)}
CLAIMS = [
    {
        "says": "The malicious neighbour's best picture is at least 10 dB above the best floor",
        "source": "Geiping et al. 2020",
        "wanted": ">= 10 dB",
        "got": "18.2 dB",
        "holds": True,
    },
    {"says": "The server is within 1 dB of it", "source": "section 2", "wanted": "<= 1 dB", "got": 1.4, "holds": False},
    {"says": "One peer killed: the others finish", "source": "", "wanted": "4 of 4", "got": None, "holds": None},
]


def study_folder(out: Path, *, guesses: int = 5, pictures: NDArray[np.uint8] | None = None) -> Path:
    """A study of three arms on faces and two on digits, with claims that hold, fail and were not run."""
    cells = []
    for task, arms in {"faces": ("swarm", "star", "defended"), "digits": ("swarm", "star")}.items():
        for arm in arms:
            summary = run_folder(out / "cells" / f"{arm}-{task}", arm, task, guesses=guesses, pictures=pictures)
            cells.append({"key": f"{arm}-{task}", "axes": {"arm": arm, "task": task}, "summary": summary})
    write(out / "summary.json", {
        "study": {"title": "A malicious peer, a server, and a defence", "source": "section 2", "quick": True},
        "cells": cells,
        "claims": CLAIMS,
        "versions": {"veilmesh": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
    })  # fmt: skip
    return out


def run_folder(
    out: Path, arm: str = "swarm", task: str = "faces", *, guesses: int = 5, pictures: NDArray[np.uint8] | None = None
) -> dict[str, Any]:
    """One run directory; returns what stands in its summary.json."""
    gain, vantage, held = ARMS[arm]
    star = arm == "star"
    summary: dict[str, Any] = {
        "title": f"{arm} on {task}", "world": "libp2p", "strategy": "fedsgd" if star else "gossip", "task": task,
        "peers": _peers(star), "edges": _edges(star),
        "adversary": {"vantage": vantage, "controls": [held], "taps_wire": False},
        "rounds": 120, "accuracy": 0.9412 if not star else 0.9466,
        "bytes_per_peer_round": 48211.4 if arm != "defended" else 6120.0,
        "bytes_counted": "wire", "seconds": 38.25, "seconds_per_round": 0.3187,
        "protections": {"envelope": "ed25519+hpke+aes-256-gcm", "channel": "noise", "transport": "libp2p 0.8.1"},
        "guards": [{"name": "noise", "std": 0.01}] if arm == "defended" else [],
        "codec": {"name": "topk", "ratio": 0.1} if arm == "defended" else {"name": "dense"},
        "attacks": [_attack(out, "cosine-inversion", vantage, gain, guesses, pictures)],
    }  # fmt: skip
    if arm == "swarm":
        summary["attacks"].append(_attack(out, "analytic", vantage, 45.0, 1, pictures))
    write(out / "summary.json", summary)
    scenario = {"task": {"name": task}, "strategy": {"name": summary["strategy"]}, "peers": 5, "rounds": 120, "seed": 7}
    write(out / "run.json", {"scenario": scenario, "versions": {"veilmesh": "0.1.0"}, "seed": 7})
    _lines(out / "metrics.jsonl", _metrics(len(arm)))
    _lines(
        out / "events.jsonl",
        [{"t": i / 10, "peer": i % 5, "kind": "round"} for i in range(20)]
        + [{"t": 3.0, "peer": 1, "kind": "refused", "reason": "replay"}],
    )
    return summary


def write(place: Path, value: object) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(value))


def _peers(star: bool) -> list[dict[str, Any]]:
    peers = [
        {"index": i, "name": f"peer:{i}", "id": f"12D3KooWQx8sVn4Y7yJ2hD9fT3mA5kLrP6uE1cZ{i}", "role": "peer",
         "rounds": 120,
         "accuracy": 0.93 + i / 100, "ended": "finished", "bytes_sent": 5_900_000 + i, "bytes_received": 5_800_000 + i,
         "refusals": {"replay": 1, "bad-seal": 2} if i == 1 and not star else {}}
        for i in range(5)
    ]  # fmt: skip
    if star:
        server = {
            "index": 5,
            "name": "server",
            "id": "12D3KooWServer",
            "role": "server",
            "rounds": 120,
            "ended": "finished",
        }
        return [*peers, server]
    peers[4]["ended"] = "killed"
    return peers


def _edges(star: bool) -> list[list[int]]:
    if star:
        return [[i, 5] for i in range(5)]
    return [[i, (i + step) % 5] for i in range(5) for step in (1, 2) if i + step < 7]


def _attack(
    out: Path, name: str, vantage: str, gain: float, count: int, pictures: NDArray[np.uint8] | None
) -> dict[str, Any]:
    scored = [_guess(out, name, i, gain * 0.78**i, pictures) for i in range(count)]
    psnrs = [guess["psnr"] for guess in scored]
    return {
        "attack": name, "options": {"steps": 600, "tv": 1e-4}, "vantage": vantage, "pictures": count,
        "psnr_best": max(psnrs), "psnr_median": float(np.median(psnrs)), "ssim_best": 0.9312, "ssim_median": 0.71,
        "floor_best": scored[0]["best_floor"], "gain_best": max(psnrs) - scored[0]["best_floor"],
        "gain_median": float(np.median([g["psnr"] - g["best_floor"] for g in scored])),
        "floors": {"grey": 12.31, "mean": 13.02, "nearest": 15.13}, "labels_right": 0.8,
        "success": {"20": 0.8, "25": 0.6, "30": 0.4}, "cpu_seconds": 214.5, "guesses": scored,
    }  # fmt: skip


def _guess(out: Path, name: str, i: int, gain: float, pictures: NDArray[np.uint8] | None) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    truth = _blobs(rng) if pictures is None else pictures[i % len(pictures)]
    near = _blobs(np.random.default_rng(i + 50)) if pictures is None else pictures[(i + 9) % len(pictures)]
    floor = 14.0 + i / 3
    psnr = min(60.0, floor + gain)
    noise = rng.normal(0, 255 * 10 ** (-psnr / 20), truth.shape)
    stem = f"pictures/{name}-{i}"
    for kind, pixels in {"truth": truth, "guess": truth + noise, "nearest": near}.items():
        place = out / f"{stem}-{kind}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(place)
    return {
        "victim": f"peer:{i % 3}", "round": i, "psnr": psnr, "ssim": 0.9 * 0.8**i, "best_floor": floor,
        "floor_nearest": floor - 0.25,
        "truth": f"{stem}-truth.png", "guess": f"{stem}-guess.png", "floor": f"{stem}-nearest.png",
        "label": i % 2, "label_ok": i != 3, "loss": 0.01 * ((i + 2) % 5 + 1),
    }  # fmt: skip


def _blobs(rng: np.random.Generator) -> NDArray[np.float64]:
    """A soft 16 x 16 colour picture."""
    y, x = np.mgrid[0:16, 0:16] / 15
    channels = [0.5 + 0.4 * np.sin(rng.uniform(1, 5) * x + rng.uniform(1, 5) * y + rng.uniform(0, 6)) for _ in range(3)]
    return 255 * np.stack(channels, -1)


def _metrics(salt: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(salt)
    lines: list[dict[str, Any]] = []
    for at in range(120):
        for peer in range(5 if at < 80 else 4):
            loss = 2.2 * np.exp(-at / (20 + salt)) + 0.12 + rng.normal(0, 0.03)
            right = 0.95 - 0.85 * np.exp(-at / (12 + salt)) + rng.normal(0, 0.008)
            accuracy = min(1.0, float(right)) if at % 5 == 4 else None
            sent = 48000 * (at + 1)
            lines.append(
                {
                    "t": at * 0.3,
                    "peer": peer,
                    "round": at,
                    "loss": float(loss),
                    "accuracy": accuracy,
                    "bytes_sent": sent,
                    "bytes_received": sent,
                }
            )
    return lines


def _lines(place: Path, values: list[dict[str, Any]]) -> None:
    place.write_text("".join(json.dumps(value) + "\n" for value in values))
