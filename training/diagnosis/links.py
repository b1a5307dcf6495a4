"""Start ranks the way a run's are started, listen to what they say, and end them, whatever has become of them.

What a rank does is `link_rank.py`; what its reports mean is `link_reports.py`.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import ds_configs
from training.config import RunConfig, resolve
from training.diagnosis.findings import Finding, bad
from training.diagnosis.link_rank import STEPS
from training.diagnosis.link_reports import Reports, explain_error, explain_stand_still, findings, speed_table
from training.launch.local import launcher, resolve_here
from training.launch.parent import bound
from training.launch.stop_ranks import end_group
from training.run.signals import say
from training.supervision.attempt import REMEMBERED_LINES, cause_of
from training.supervision.hosts import Host, Pool, on_each

MODULE = "training.diagnosis.link_rank"
# After one rank's error others may have more to say.
AFTERMATH_SECONDS = 3.0
# Ranks have a limit of their own in the rendezvous, and say more than is seen from here.
MARGIN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is started, and where."""

    config: RunConfig
    hosts: tuple[Host, ...]
    hostfile: str | None
    launcher_options: tuple[str, ...] = ()
    """`--master_port` and others that a person would give `deepspeed`."""
    ssh_options: tuple[str, ...] = ()
    mebibytes: int = 64
    limit_seconds: float = 60.0
    token: str = field(default_factory=lambda: f"links-{uuid.uuid4().hex}")

    @property
    def stages(self) -> int:
        """Of each pipeline."""
        return self.config.batch.stages

    def start(self) -> tuple[list[str], dict[str, str]]:
        """Command and environment, as the run's ranks are started: by the command `deepspeed`, or on one machine by its per-node half."""
        words = [MODULE, self.token, "--stages", str(self.stages), "--precision", json.dumps(self.config.precision).strip('"')]
        words += ["--mebibytes", str(self.mebibytes), "--limit-seconds", str(self.limit_seconds)]
        if self.hostfile:
            runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", self.hostfile, *self.launcher_options]
            return [*runner, "--module", *words], dict(os.environ)
        command, environment = launcher(self.hosts[0].slots)
        return [*command, "--module", *words], environment


def config_for(path: str, overrides: Sequence[str], pool: Pool | None) -> tuple[RunConfig, tuple[Host, ...]]:
    """The run, and the hosts with the ranks that it would have there.

    Raises:
        ValueError: If the configuration is wrong, or the slots do not fit it.
    """
    if pool is None:
        config, _ = resolve_here(path, overrides)
        return config, (Host("localhost", config.batch.world_size),)
    config = resolve(ds_configs.read(path, overrides), pool.slots)
    stages = config.batch.stages
    odd = [host for host in pool.wanted if host.slots % stages]
    if odd:
        raise ValueError(
            f"{odd[0].name} slots={odd[0].slots}, but pipeline.stages = {stages}: a pipeline would lie across hosts. "
            f"Give every host {stages} slots, or a multiple."
        )
    return config, pool.wanted


def check_links(trial: Trial) -> tuple[list[Finding], str]:
    """Start the ranks and wait until they are through, one fails, or nothing moves any more. Nothing of them is left afterwards.

    Returns:
        The findings, and the table of speeds if it came to that.
    """
    reports = Reports([host.name for host in trial.hosts for _ in range(host.slots)], time.monotonic())
    command, environment = trial.start()
    process = subprocess.Popen(
        bound(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    stopped: Finding | None = bad("links", "interrupted", "start it again")
    try:
        stopped = _listen(process, reports, trial)
    finally:
        end_group(process.pid, process.poll() or 0)
        process.wait()
        left = _end_ranks(trial) if stopped else []
    found = findings(reports, trial.stages, stopped)
    if left:
        said = f"{', '.join(left)}: no answer when the ranks were to be ended"
        way = f"they end themselves within two minutes; else on that host: pkill -KILL -f {trial.token}"
        found.append(bad("clean-up", said, way))
    return found, speed_table(reports) if reports.speeds and not stopped else ""


def _listen(process: subprocess.Popen[bytes], reports: Reports, trial: Trial) -> Finding | None:
    """Take reports until the end. Returns what went wrong."""
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    others: deque[str] = deque(maxlen=REMEMBERED_LINES)
    told: set[str] = set()
    limit = trial.limit_seconds + MARGIN_SECONDS
    failed_at: float | None = None
    while True:
        now = time.monotonic()
        if failed_at is not None and now - failed_at > AFTERMATH_SECONDS:
            return explain_error(reports)
        if now - reports.progress_at > limit:
            return explain_stand_still(reports, limit, now)
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            continue
        if line is None:
            break
        if not reports.take(line, time.monotonic()):
            others.append(line.rstrip())
        if reports.errors and failed_at is None:
            failed_at = time.monotonic()
        for step in STEPS:
            if step not in told and reports.passed(step):
                told.add(step)
                say(f"links: {step}: done by all {len(reports.ranks)} ranks")
    if reports.errors:
        return explain_error(reports)
    if reports.passed(STEPS[-1]):
        return None
    code = process.wait()
    return bad("ranks", f"the launcher ended with code {code}: {cause_of(code, others)}", f"try it: {' '.join(trial.start()[0][:8])} ...")


def _read(process: subprocess.Popen[bytes], lines: queue.Queue[str | None]) -> None:
    assert process.stdout
    for raw in process.stdout:
        lines.put(raw.decode("utf-8", errors="replace"))
    lines.put(None)


def _end_ranks(trial: Trial) -> list[str]:
    """End what is left of the ranks on every host. Returns the hosts that did not answer."""
    command = [sys.executable, "-m", "training.supervision.leftovers", json.dumps([trial.token]), MODULE]
    ended = on_each(trial.hosts, command, trial.ssh_options, limit_seconds=60.0)
    return [name for name, said in ended.items() if said is None]
