"""What the ranks of `link_rank.py` said, and what it means: who is silent, who waits for whom, and how fast the links are."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ds_configs.errors import few
from training.diagnosis.findings import Finding, bad, good, note
from training.diagnosis.link_rank import MARK

SHOWN = 4
NEVER = float("-inf")
# A link at less than this part of its kind's median is named.
SLOW_PART = 0.5
START_FIX = "ssh there and start .venv/bin/python -c 'import torch': is the shared disk slow, the checkout or .venv missing?"
MEET_FIX = "open the port between the hosts, or name a network that they share: --master-addr ADDRESS, --master-port N"
GROUP_FIX = "let ranks reach each other on every port; on CPUs GLOO_SOCKET_IFNAME=<interface> in .deepspeed_env picks the network"
LATER_FIX = "look at that host: is the process stopped (ps: state T), its device hung, the host or its network down?"


@dataclass(frozen=True)
class Step:
    """What all ranks do, one after the other."""

    label: str
    what: str
    fix: str = ""


# By the name that ranks give them, in their order.
STEPS = {
    "start": Step("ranks", "its start", START_FIX),
    "meet": Step("meeting", "the meeting before the process group", MEET_FIX),
    "group": Step("process group", "the making of the process group", GROUP_FIX),
    "ring": Step("ring", "the ring of send and receive"),
    "all_reduce": Step("all_reduce", "the all_reduce"),
    "speed": Step("speed", "the measurement of speed"),
    "end": Step("speed", "the end"),
}
ORDER = list(STEPS)


@dataclass
class Seen:
    """What one rank has said."""

    host: str
    heard_at: float = NEVER
    step: str = "start"
    waits: list[int] = field(default_factory=list)

    def has_done(self, step: str) -> bool:
        """Whether it is at a later step."""
        return ORDER.index(self.step) > ORDER.index(step)


class Reports:
    """All ranks' reports so far."""

    def __init__(self, hosts: Sequence[str], now: float) -> None:
        self.ranks = {rank: Seen(host) for rank, host in enumerate(hosts)}
        self.errors: dict[str, int] = {}
        self.speeds: dict[str, list[tuple[float, int, int]]] = {}
        """Kind of link -> bytes per second, rank, peer."""
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
        seen.heard_at = now
        if "beat" in said:
            return True
        self.progress_at = now
        seen.host = said.get("host", seen.host)
        seen.step = said.get("step", seen.step)
        seen.waits = said.get("waits", [])
        if "error" in said:
            self.errors.setdefault(said["error"], rank)
        if "kind" in said:
            self.speeds.setdefault(said["kind"], []).append((said["speed"], rank, said["peer"]))
        self.facts |= {name: said[name] for name in ("backend", "precision") if name in said}
        return True

    def passed(self, step: str) -> bool:
        """Whether all ranks have done it."""
        return all(seen.has_done(step) for seen in self.ranks.values())

    def name(self, ranks: Sequence[int]) -> str:
        """Ranks with their hosts, the first few."""
        return few([f"rank {rank} on {self.ranks[rank].host}" for rank in ranks], SHOWN)


def findings(reports: Reports, stages: int) -> list[Finding]:
    """One line for each step that all ranks have done."""
    size = len(reports.ranks)
    hosts = list(dict.fromkeys(seen.host for seen in reports.ranks.values()))
    done = {
        "start": f"{size} started on {few(hosts, SHOWN)}",
        "meet": "every rank reaches rank 0",
        "group": f"{reports.facts.get('backend')}, {size} ranks",
        "ring": f"send and receive in {reports.facts.get('precision')}: every rank to the next, the last to the first",
        "all_reduce": f"over {size} ranks in fp32, the sum is right",
    }
    found = [good(STEPS[step].label, said) for step, said in done.items() if reports.passed(step)]
    if reports.passed("meet"):  # Where the ranks of a pipeline are on several hosts, the meeting ends with that.
        found.insert(1, good("pipelines", f"{size // stages} of {stages} stages, each on one host"))
    return found


def explain_error(reports: Reports) -> Finding:
    """What the ranks say themselves: the first error is the cause, the next ones mostly follow from it."""
    (error, rank), *later = reports.errors.items()
    step = STEPS[reports.ranks[rank].step]
    more = f"  ({len(later)} more errors followed)" if later else ""
    return bad(step.label, f"{reports.name([rank])}, in {step.what}: {error}{more}", step.fix or LATER_FIX)


def explain_stand_still(reports: Reports, seconds: float, now: float) -> Finding:
    """Why nothing moves: ranks that are not heard of, else those that wait, and for whom."""
    # Who has not said for half of that time even that it is alive.
    silent = [rank for rank, seen in reports.ranks.items() if seen.heard_at < now - seconds / 2]
    if silent:
        first = reports.ranks[silent[0]]
        step = STEPS[first.step]
        if never := [rank for rank in silent if reports.ranks[rank].heard_at == NEVER]:
            return bad(step.label, f"{reports.name(never)}: never came", START_FIX)
        return bad(step.label, f"{reports.name(silent)}: silent for {now - first.heard_at:.0f} s, last in {step.what}", LATER_FIX)
    behind = next(step for step in ORDER if not reports.passed(step))
    late = {rank: seen for rank, seen in reports.ranks.items() if not seen.has_done(behind)}
    waiting = [f"{reports.name([rank])} waits for {reports.name(seen.waits)}" for rank, seen in late.items() if seen.waits]
    said = "; ".join(waiting[:SHOWN]) or f"{reports.name(list(late))}: not done"
    step = STEPS[behind]
    return bad(step.label, f"{step.what} stands still for {seconds:.0f} s: {said}", step.fix or GROUP_FIX)


def speeds(reports: Reports) -> tuple[list[Finding], str]:
    """Links much slower than others of their kind, and a table of each kind's bandwidth."""
    slow = []
    lines = [f"{'link':<28}{'number':>7}{'median GB/s':>13}{'slowest GB/s':>14}"]
    for kind, links in sorted(reports.speeds.items()):
        slowest, rank, peer = min(links)
        median = statistics.median(speed for speed, *_ in links)
        where = f"ranks {rank} and {peer}" if kind != "sum over replicas" else f"rank {rank}"
        lines.append(f"{kind:<28}{len(links):>7}{median / 1e9:>13.2f}{slowest / 1e9:>14.2f}  {where}")
        if slowest < SLOW_PART * median:
            said = f"{kind}: {reports.name([rank, peer])}: {slowest / 1e9:.2f} GB/s where others have {median / 1e9:.2f}"
            slow.append(note("slow link", said, "measure again on an idle cluster; then look at cable, switch port and device"))
    return slow, "\n".join(lines)
