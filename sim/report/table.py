"""The report's one table, and its claims, for the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from veilmesh.sim.report.inferred import inferred
from veilmesh.sim.report.load import cleaned, labelled, validated
from veilmesh.sim.report.model import Attacked, Cell, Claim, Summary
from veilmesh.sim.report.numbers import amount, decibels, duration, gain, interval, percent, share, shares, similarity
from veilmesh.sim.report.rows import Row, rows
from veilmesh.sim.report.sections import tally

__all__ = ["claims_table", "inferred_table", "scores_table", "summary_table"]

_COLUMNS = ("PSNR", "floor", "gain", "median", "SSIM", "accur.", "bytes", "time", "CPU")


def summary_table(summaries: Iterable[Mapping[str, Any] | None]) -> Table:
    """Who attacked from where, PSNR (dB), SSIM, what a no-information guess scores, accuracy, bytes, seconds.

    Takes summaries of runs (`summary.json`), or cells of a study (`{"key", "axes", "summary"}`), which are named by
    their axes. Raises BadInput where one is not what it should be.
    """
    named = _named(list(summaries))
    caption = (
        "PSNR (dB, at most 60) and SSIM of the best picture, picked by the scorer, who holds the truth; median over "
        "all pictures. Floor: the best guess made without any information. Accuracy: mean of those who finished. "
        f"Bytes: sent by each peer in each round, {_counted(named)}. CPU: of all members."
    )
    if any(summary and summary.split for _, summary in named):
        caption += " In split mode peers are the data owners only."
    marks = _marks(row.attacked for row in rows(named) if row.attacked)
    if marks:
        caption += " Easier than ordinary training: " + ", ".join(f"[{n}] {what}" for what, n in marks.items()) + "."
    table = _plain(caption)
    table.add_column("run, and who attacked it")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    last = -1
    for row in rows(named):
        if row.run != last:
            table.add_row(*_run_cells(row))
        if row.attacked:
            table.add_row(*_attack_cells(row, row.attacked, marks))
        last = row.run
    return table


def scores_table(summaries: Iterable[Mapping[str, Any] | None]) -> Table | None:
    """Every attack's mean with its 95 % interval, what blind guesses score, the shares that reach so many decibels, and
    the share that was identified; None where no attack guessed at pictures. Takes what `summary_table` takes."""
    found = [row for row in rows(_named(list(summaries))) if row.attacked and row.attacked.psnr_mean is not None]
    if not found:
        return None
    table = _plain(
        "Means over all pictures, with 95 % intervals over pictures (over whole batches, where there are several). "
        "Blind: public pictures drawn at random, matched one to one as the guesses are. Identified: the picture is the "
        "nearest of a gallery to its guess; in brackets, what the best guess without any information has."
    )
    table.add_column("run, and attack", overflow="fold")
    for name in ("PSNR", "blind", "gain", "20/25/30 dB", "identified"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        if row.attacked:
            table.add_row(Text(f"{row.label}\n  {row.attacked.called}"), *map(Text, _score_cells(row.attacked)))
    return table


def inferred_table(summaries: Iterable[Mapping[str, Any] | None]) -> Table | None:
    """What every inference told, by kind of model; None where there was none. Takes what `summary_table` takes."""
    found = inferred(rows(_named(list(summaries))))
    if not found:
        return None
    table = _plain(
        "AUC: the chance that a member scores above another; 95 % intervals over candidates. By chance: where scores "
        "that know nothing lie 95 times in 100. Hits: members found at 1 % of false alarms."
    )
    table.add_column("run, and attack", overflow="fold")
    for name in ("read from", "AUC", "by chance", "accuracy", "hits"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        auc = Text(f"{one.auc}\n{one.interval}", "bold" if one.above else "")
        table.add_row(Text(f"{one.label}\n  {one.attack}"), one.model, auc, one.chance, one.accuracy, one.hits)
    return table


def claims_table(claims: Iterable[Mapping[str, Any]]) -> Table:
    """What a study claims, what was wanted, what came out, and whether it holds."""
    known = validated(tuple[Claim, ...], cleaned(list(claims)), "The list of claims")
    table = Table(caption=tally(known), header_style="bold")
    for name in ("", "claim", "wanted", "got"):
        table.add_column(name, overflow="fold")
    words = {True: Text("holds", "green"), False: Text("FAILS", "bold red"), None: Text("not run", "yellow")}
    for claim in known:
        table.add_row(words[claim.holds], *map(Text, (claim.says, claim.wanted, claim.got)))
    return table


def _named(summaries: list[Mapping[str, Any] | None]) -> list[tuple[str, Summary | None]]:
    if any("axes" in given or "key" in given for given in summaries if given):
        cells = validated(tuple[Cell, ...], cleaned(summaries), "The list of cells")
        return [(label, cell.summary) for cell, (label, _) in zip(cells, labelled(cells), strict=True)]
    there = [given or {} for given in summaries]  # a cell without a result has None in the place of its summary
    known = validated(tuple[Summary, ...], cleaned(there), "The list of summaries")
    return [(summary.title, summary) for summary in known]


def _counted(named: list[tuple[str, Summary | None]]) -> str:
    """Where bytes were counted: only a real wire may be called one."""
    words = {"wire": "counted on the wire", "frames": "as sealed frames without a wire", "simulated": "simulated"}
    found = sorted({summary.bytes_counted for _, summary in named if summary and summary.bytes_counted})
    return ", or ".join(words.get(how, how) for how in found) or "however they were counted"


def _run_cells(row: Row) -> list[Text]:
    """A run and its own figures, as text that is never read as markup."""
    run = row.summary
    costs = [percent(run.accuracy), amount(run.bytes_per_peer_round), duration(run.seconds), duration(run.cpu_seconds)]
    return [Text(row.label, "bold"), *[Text("")] * 5, *map(Text, costs)]


def _plain(caption: str) -> Table:
    return Table(caption=escape(caption), header_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _marks(attacks: Iterable[Attacked]) -> dict[str, int]:
    """Every easier setting that any attack had, numbered for the caption: a terminal has no room beside the names."""
    settings = dict.fromkeys(what for attacked in attacks for what in attacked.easier)
    return {what: at for at, what in enumerate(settings, 1)}


def _score_cells(attacked: Attacked) -> Sequence[str]:
    """Figures, each with its interval below it."""
    return (
        f"{decibels(attacked.psnr_mean)}\n{interval(attacked.psnr_low, attacked.psnr_high)}",
        decibels(attacked.floor_blind),
        f"{gain(attacked.gain_mean)}\n{interval(attacked.gain_low, attacked.gain_high, signed=True)}",
        shares(attacked.success),
        f"{share(attacked.identified)} ({share(attacked.identified_floor)})",
    )


def _attack_cells(row: Row, attacked: Attacked, marks: Mapping[str, int]) -> list[Text]:
    """An attack on the run above it, with the numbers of what made it easier."""
    place = row.attacker.split(",")[0]  # a terminal is narrow: where exactly is for the page to say
    easier = "".join(f"[{marks[what]}]" for what in attacked.easier)
    scores = [decibels(attacked.psnr_best), decibels(attacked.floor_best), gain(attacked.gain_best)]
    scores += [decibels(attacked.psnr_median), similarity(attacked.ssim_best)]
    name = f"  {place}: {attacked.called}" + (f" {easier}" if easier else "")
    if attacked.psnr_best is None and attacked.labels_right is not None:  # it guesses at labels, and at nothing else
        name += f"\n  labels {share(attacked.labels_right)} ({share(attacked.labels_floor)})"
    return [Text(name), *map(Text, scores), *[Text("")] * 3]
