"""What the ranks of `link_rank.py` said, and what it means: who is silent, who waits for whom, and how fast the links are."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from training.diagnosis.findings import Finding, bad, good
from training.diagnosis.link_rank import MARK, STEPS

SHOWN = 4
# A link at less than this part of its kind's median is named.
SLOW_PART = 0.5
LABELS = {"start": "ranks", "meet": "meeting", "group": "process group", "ring": "ring", "all_reduce": "all_reduce", "speed": "speed"}
WHAT = {
    "start": "its start",
    "meet": "the meeting before the process group",
    "group": "the making of the process group",
    "ring": "the ring of send and receive",
    "all_reduce": "the all_reduce",
    "speed": "the measurement of speed",
}
FIXES = {
    "start": "ssh there and start .venv/bin/python -c 'import torch': is the shared disk slow, the checkout or .venv missing?",
    "meet": "open the port between the hosts, or name a network that they share: --master-addr ADDRESS, --master-port N",
    "group": "let ranks reach each other on every port; on CPUs GLOO_SOCKET_IFNAME=<interface> in .deepspeed_env picks the network",
}
LATER_FIX = "look at that host: is the process stopped (ps: state T), its device hung, the host or its network down?"


@dataclass
class Seen:
    """What one rank has said."""

    heard_at: float
    host: str = "?"
    step: str = "start"
    waits: list[int] = field(default_factory=list)
    done: set[str] = field(default_factory=set)


class Reports:
    """All ranks' reports so far."""

    def __init__(self, hosts: Sequence[str], now: float) -> None:
        self.ranks = {rank: Seen(now, host=host) for rank, host in enumerate(hosts)}
        self.heard: set[int] = set()
        self.errors: dict[str, int] = {}
        self.speeds: list[tuple[str, int, int, float]] = []
        self.facts: dict[str, str] = {}
        self.progress_at = now

    def take(self, line: str, now: float) -> bool:
        """Read a line of the launcher's output; False if it is no report."""
        _, mark, text = line.partition(MARK)
        try:
            said: dict[str, Any] = json.loads(text) if mark else {}
        except ValueError:
            return False
        if said.get("rank") not in self.ranks:
            return False
        rank = said["rank"]
        seen = self.ranks[rank]
        self.heard.add(rank)
        seen.heard_at = now
        if "beat" in said:
            return True
        self.progress_at = now
        seen.host = said.get("host", seen.host)
        seen.waits = said.get("waits", [])
        if "step" in said:
            seen.done.update(STEPS[: STEPS.index(said["step"])])
            seen.step = said["step"]
        if "done" in said:
            seen.done.add(said["done"])
        if "error" in said:
            self.errors.setdefault(said["error"], rank)
        if "kind" in said:
            self.speeds.append((said["kind"], rank, said["peer"], said["speed"]))
        self.facts |= {name: said[name] for name in ("backend", "precision") if name in said}
        return True

    def passed(self, step: str) -> bool:
        """Whether all ranks have done it."""
        return all(step in seen.done for seen in self.ranks.values())

    def name(self, ranks: Sequence[int]) -> str:
        """Ranks with their hosts, the first few."""
        shown = ", ".join(f"rank {rank} on {self.ranks[rank].host}" for rank in ranks[:SHOWN])
        return shown + (f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else "")

    def silent(self, since: float) -> list[int]:
        """Who has not been heard of since then, not even that it is alive."""
        return [rank for rank, seen in self.ranks.items() if seen.heard_at < since or rank not in self.heard]


def findings(reports: Reports, stages: int, stopped: Finding | None) -> list[Finding]:
    """One line for each step that all ranks have done, and what stopped the first that they have not."""
    size = len(reports.ranks)
    hosts = list(dict.fromkeys(seen.host for seen in reports.ranks.values()))
    shown = ", ".join(hosts[:SHOWN]) + (f" and {len(hosts) - SHOWN} more" if len(hosts) > SHOWN else "")
    found = []
    if reports.passed("start"):
        found += [good(LABELS["start"], f"{size} started on {shown}"), _pipelines(reports, stages)]
    if reports.passed("meet"):
        found.append(good(LABELS["meet"], "every rank reaches rank 0"))
    if reports.passed("group"):
        found.append(good(LABELS["group"], f"{reports.facts['backend']}, {size} ranks"))
    if reports.passed("ring"):
        found.append(
            good(LABELS["ring"], f"send and receive in {reports.facts['precision']}: every rank to the next, the last to the first")
        )
    if reports.passed("all_reduce"):
        found.append(good(LABELS["all_reduce"], f"over {size} ranks in fp32, the sum is right"))
    if reports.passed("speed"):
        found += slow_links(reports)
    return [*found, stopped] if stopped else found


def _pipelines(reports: Reports, stages: int) -> Finding:
    hosts = [seen.host for _, seen in sorted(reports.ranks.items())]
    across = [first for first in range(0, len(hosts), stages) if len(set(hosts[first : first + stages])) > 1]
    if across:
        said = f"ranks {across[0]}-{across[0] + stages - 1} lie on {', '.join(dict.fromkeys(hosts[across[0] : across[0] + stages]))}"
        return bad("pipelines", said, "number the ranks host by host; slots must be a multiple of pipeline.stages")
    return good("pipelines", f"{len(hosts) // stages} of {stages} stages, each on one host")


def explain_error(reports: Reports) -> Finding:
    """What the ranks say themselves: the first error is the cause, the next ones mostly follow from it."""
    first, *later = reports.errors.items()
    seen = reports.ranks[first[1]]
    said = f"{reports.name([first[1]])}, in {WHAT[seen.step]}: {first[0]}"
    more = f"  ({len(later)} more errors followed)" if later else ""
    return bad(LABELS[seen.step], said + more, FIXES.get(seen.step, LATER_FIX))


def explain_stand_still(reports: Reports, seconds: float, now: float) -> Finding:
    """Why nothing moves: ranks that are not heard of, else those that wait, and for whom."""
    behind = next((step for step in STEPS if not reports.passed(step)), STEPS[-1])
    late = [rank for rank, seen in reports.ranks.items() if behind not in seen.done]
    silent = reports.silent(now - seconds / 2)
    if silent:
        step = reports.ranks[silent[0]].step
        never = [rank for rank in silent if rank not in reports.heard]
        how = "never came" if never else f"silent for {now - reports.ranks[silent[0]].heard_at:.0f} s, last in {WHAT[step]}"
        return bad(LABELS[step], f"{reports.name(never or silent)}: {how}", FIXES["start"] if never else LATER_FIX)
    waiting = [f"{reports.name([rank])} waits for {reports.name(reports.ranks[rank].waits)}" for rank in late if reports.ranks[rank].waits]
    said = "; ".join(waiting[:SHOWN]) or f"{reports.name(late)}: not done"
    return bad(LABELS[behind], f"{WHAT[behind]} stands still for {seconds:.0f} s: {said}", FIXES.get(behind, FIXES["group"]))


def slow_links(reports: Reports) -> list[Finding]:
    """Links much slower than others of their kind."""
    found = []
    for kind, links in by_kind(reports).items():
        median = statistics.median(speed for *_, speed in links)
        slow = [link for link in links if link[2] < SLOW_PART * median]
        if slow:
            rank, peer, speed = slow[0]
            said = f"{kind}: {reports.name([rank, peer])}: {speed / 1e9:.2f} GB/s where others have {median / 1e9:.2f}"
            found.append(Finding("slow link", "note", said, "measure again on an idle cluster; then look at cable, switch port and device"))
    return found


def by_kind(reports: Reports) -> dict[str, list[tuple[int, int, float]]]:
    """Kind of link -> (rank, peer, bytes per second), slowest first."""
    kinds: dict[str, list[tuple[int, int, float]]] = {}
    for kind, rank, peer, speed in sorted(reports.speeds, key=lambda one: one[3]):
        kinds.setdefault(kind, []).append((rank, peer, speed))
    return dict(sorted(kinds.items()))


def speed_table(reports: Reports) -> str:
    """Bandwidth of each kind of link."""
    lines = [f"{'link':<28}{'number':>7}{'median GB/s':>13}{'slowest GB/s':>14}"]
    for kind, links in by_kind(reports).items():
        rank, peer, slowest = links[0]
        median = statistics.median(speed for *_, speed in links)
        where = f"ranks {rank} and {peer}" if kind != "sum over replicas" else f"rank {rank}"
        lines.append(f"{kind:<28}{len(links):>7}{median / 1e9:>13.2f}{slowest / 1e9:>14.2f}  {where}")
    return "\n".join(lines)
