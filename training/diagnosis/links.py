"""Start ranks the way a run's are started, listen to what they say, and end them, whatever has become of them.

What a rank does is `link_rank.py`; what its reports mean is `link_reports.py`.
"""

import argparse
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

import ds_configs
from ds_configs.commands import say
from training.config import RunConfig, resolve
from training.diagnosis.findings import Finding, bad
from training.diagnosis.link_reports import ORDER, Reports, explain_error, explain_stand_still, findings, speeds
from training.launch.launcher_process import end_group
from training.launch.local import launcher, resolve_here
from training.launch.process_tree import bound
from training.supervision import leftovers
from training.supervision.attempt import REMEMBERED_LINES, cause_of
from training.supervision.hosts import Host, Pool, on_each, options_for

MODULE = "training.diagnosis.link_rank"
# After one rank's error others may have more to say.
AFTERMATH_SECONDS = 3.0
# Ranks have a limit of their own in the rendezvous, and say more than is seen from here.
MARGIN_SECONDS = 10.0


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


def check_links(options: argparse.Namespace, config: RunConfig, hosts: Sequence[Host]) -> tuple[list[Finding], str]:
    """Start the ranks and wait until they are through, one fails, or nothing moves any more. Nothing of them is left afterwards.

    Args:
        options: The doctor's.
        config: The run whose ranks they would be.
        hosts: With as many slots as it has ranks there.

    Returns:
        The findings, and the table of speeds if it came to that.
    """
    token = f"links-{uuid.uuid4().hex}"
    reports = Reports([host.name for host in hosts for _ in range(host.slots)], time.monotonic())
    command, environment = _command(options, config, hosts, token)
    process = subprocess.Popen(
        bound(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    stopped: Finding | None = bad("links", "interrupted", "start it again")
    left: list[str] = []
    try:
        stopped = _listen(process, command, reports, options.limit_seconds + MARGIN_SECONDS)
    finally:
        end_group(process.pid, process.poll() or 0)
        process.wait()
        if stopped:
            end_ranks = [sys.executable, "-m", leftovers.__name__, json.dumps([token]), MODULE]
            ended = on_each(hosts, end_ranks, options.ssh_port, limit_seconds=60.0)
            left = [name for name, said in ended.items() if said is None]
    found = findings(reports, config.batch.stages)
    if stopped is None:
        slow, table = speeds(reports)
        return [*found, *slow], table if reports.speeds else ""
    found.append(stopped)
    if left:
        said = f"{', '.join(left)}: no answer when the ranks were to be ended"
        found.append(bad("clean-up", said, f"they end themselves within two minutes; else on that host: pkill -KILL -f {token}"))
    return found, ""


def _command(options: argparse.Namespace, config: RunConfig, hosts: Sequence[Host], token: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment, as the run's ranks are started: by the command `deepspeed`, or on one machine by its per-node half."""
    words = [MODULE, token, "--stages", str(config.batch.stages), "--precision", str(config.precision).lower()]
    words += ["--mebibytes", str(options.mebibytes), "--limit-seconds", str(options.limit_seconds)]
    if not options.hostfile:
        command, environment = launcher(hosts[0].slots)
        return [*command, "--module", *words], environment
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *options_for(hosts, options.hostfile)]
    for name in ("ssh_port", "master_addr", "master_port"):
        if value := getattr(options, name):
            command += [f"--{name}", value]
    return [*command, "--module", *words], dict(os.environ)


def _listen(process: subprocess.Popen[bytes], command: Sequence[str], reports: Reports, limit_seconds: float) -> Finding | None:
    """Take reports until the end. Returns what went wrong."""
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    others: deque[str] = deque(maxlen=REMEMBERED_LINES)
    steps = deque(ORDER)
    failed_at: float | None = None
    while True:
        now = time.monotonic()
        if failed_at is not None and now - failed_at > AFTERMATH_SECONDS:
            return explain_error(reports)
        if now - reports.progress_at > limit_seconds:
            return explain_stand_still(reports, limit_seconds, now)
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
        while reports.passed(steps[0]):
            say(f"links: {steps.popleft()}: done by all {len(reports.ranks)} ranks")
    if reports.errors:
        return explain_error(reports)
    if steps[0] == "end":
        return None
    code = process.wait()
    return bad("ranks", f"the launcher ended with code {code}: {cause_of(code, others)}", f"try it: {' '.join(command[:8])} ...")


def _read(process: subprocess.Popen[bytes], lines: queue.Queue[str | None]) -> None:
    assert process.stdout
    for raw in process.stdout:
        lines.put(raw.decode("utf-8", errors="replace"))
    lines.put(None)
