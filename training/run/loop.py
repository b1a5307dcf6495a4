"""The training loop and the evaluation. Read top to bottom: nothing is called back from elsewhere."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data.batches.datasets import Datasets, ValidationSet
from training.checkpoints.find_and_verify import published
from training.checkpoints.save import Saver
from training.config import RunConfig
from training.health.replica_check import compare_replicas
from training.health.rewind import rewind
from training.health.spikes import Spike, Spikes
from training.health.watchdog import Heartbeat
from training.launch.process_group import Ranks, gather
from training.run.failure import RunError
from training.run.meter import Meter
from training.run.sample_text import sample_text
from training.run.stop_request import StopRequest
from training.run_folder.outputs import RunOutputs

HELD_OUT_PROMPT_TOKENS = 8
# A wait for a save under way that is worth a line.
LONG_WAIT_SECONDS = 1.0


@dataclass(kw_only=True)
class Run:
    """What one start of a run carries along beside engine, configuration and datasets."""

    ranks: Ranks
    last_step: int
    heartbeat: Heartbeat
    stop: StopRequest
    meter: Meter
    outputs: RunOutputs | None  # Rank 0 only.
    saver: Saver
    spikes: Spikes
    results: dict[str, float] = field(default_factory=dict)
    stopped: bool = False


def train(engine: Any, config: RunConfig, datasets: Datasets, run: Run) -> None:
    """Advance the engine from its current step to the last one, or to a stop all ranks agree on.

    Raises:
        RunError: If the loss blows up and `training.non_finite` says stop, or it spikes once more than `training.spike` allows; if replicas
            no longer have the same weights; if the checkpoint of the last step, or of a stop, could not be saved.
    """
    batches = _batches(engine, config, datasets, run)
    run.meter.go_on()
    try:
        while engine.global_steps < run.last_step and not run.stopped:
            if not _advance(engine, config, datasets, batches, run):
                batches = _batches(engine, config, datasets, run)
    except RunError:  # On all ranks alike, so what was saved before can still be published.
        finish_save(run)
        raise
    except Exception:  # On this rank, or a peer is gone: no collective any more, but what was begun may become whole.
        run.saver.settle()
        raise
    if run.saver.saved_step != engine.global_steps and engine.global_steps:
        raise RunError(
            f"{config.folder / 'checkpoints'}: the checkpoint of step {engine.global_steps} could not be saved; see the lines above."
        )


def _batches(engine: Any, config: RunConfig, datasets: Datasets, run: Run) -> Iterator[Any]:
    """This replica's micro-batches from the engine's current step on."""
    return datasets.train.batches(
        start_sample=engine.global_samples,
        replica=run.ranks.replica,
        num_replicas=run.ranks.replicas,
        micro_batch=config.batch.micro_batch,
        skipped=tuple(run.spikes.skipped),
    )


def _advance(engine: Any, config: RunConfig, datasets: Datasets, batches: Iterator[Any], run: Run) -> bool:
    """One optimizer step, and what is due after it. False if the run went back for a spike of the loss instead."""
    plan = config.training
    lr = engine.get_lr()[0]
    with run.heartbeat.phase("step"):
        loss = engine.train_batch(batches)
    step = engine.global_steps  # the only step counter
    run.meter.add(loss, engine, lr)  # stays on the device
    run.stopped = run.stop.agreed()
    last = step == run.last_step
    saves = last or run.stopped or step % plan.save_interval_steps == 0

    if saves or step == 1 or step % plan.log_interval_steps == 0:
        # The one place that waits for the device; before a save, so that no poisoned weights are kept.
        spike = report(engine, run)
        if spike and _go_back(engine, config, run, spike):
            return False
    checks = plan.replica_check_interval_steps
    if checks is not None and (saves or step % checks == 0):
        check_replicas(engine, config, run)
    if last or step % plan.eval_interval_steps == 0:
        evaluate_and_sample(engine, config, datasets, run)
    if saves:
        save(engine, config, datasets, run, wait=last or run.stopped)
    if run.outputs:
        run.outputs.advance(step)
    return True


def _go_back(engine: Any, config: RunConfig, run: Run, spike: Spike) -> bool:
    """See `rewind`. What was written of the steps that come again is dropped."""
    run.meter.pause()
    finish_save(run)
    with run.heartbeat.phase("rewind"):
        went_back = rewind(engine, config, run.ranks, run.spikes, spike)
    if went_back:
        run.saver.saved_step = engine.global_steps
        if run.outputs:
            run.outputs.go_back(engine.global_steps)
    run.meter.go_on()
    return went_back


def report(engine: Any, run: Run) -> Spike | None:
    """Read the interval's values on all ranks; write them on rank 0. Returns the first spike among the losses."""
    records = run.meter.read(engine)
    run.results |= {"train/loss": records[-1]["train/loss"], "perf/tokens_per_second": records[-1]["perf/tokens_per_second"]}
    if run.outputs:
        run.outputs.write(records)
        run.outputs.line(records)
    spike = run.spikes.find(records)
    # A loss should be the same on all ranks to the last bit; that they act alike must not depend on it.
    return gather(spike)[0] if run.spikes.config else None


def check_replicas(engine: Any, config: RunConfig, run: Run) -> None:
    """End the run, on all ranks, if the replicas no longer have the same weights."""
    if differences := compare_replicas(engine, run.ranks):
        finish_save(run)  # Of weights that were compared.
        saved = published(config.folder)
        before = f"the newest checkpoint before it is {saved[0]}" if saved else "there is no checkpoint yet"
        raise RunError(
            f"step {engine.global_steps}: the replicas' weights differ: {'; '.join(differences)}. Memory, device or network of a host "
            f"may be faulty. This step is not saved; {before}."
        )


def evaluate(engine: Any, config: RunConfig, datasets: Datasets, ranks: Ranks) -> dict[str, float]:
    """Score the validation split, and where it has several sources each of them too; the same on every rank and any topology."""
    sources = datasets.valid_sources
    num_rows = sum(valid.num_rows for valid in sources.values())
    most = config.training.eval_batches
    totals = {}
    for name, valid in sources.items():
        # Limited, each source is scored in proportion to what is held out of it.
        max_batches = None if most is None else max(1, round(most * valid.num_rows / num_rows))
        totals[name] = _score(engine, config, valid, ranks, max_batches)
    whole = [sum(values) for values in zip(*totals.values(), strict=True)]
    parts = {f"valid/{name}": total for name, total in totals.items()} if len(totals) > 1 else {}
    scores: dict[str, float] = {}
    for tag, (nats, tokens, characters) in {"valid": whole, **parts}.items():
        scores |= {f"{tag}/loss": nats / tokens, f"{tag}/bits_per_char": nats / math.log(2) / characters}
    return scores


def _score(engine: Any, config: RunConfig, valid: ValidationSet, ranks: Ranks, max_batches: int | None) -> tuple[float, float, float]:
    """Return nats, tokens and characters of the whole set, or of its first `max_batches` micro-batches.

    Every batch is (micro-batch, T) with absent tokens labelled -100, and a batch's loss is its sum over B * T, so the mean loss
    times the number of positions is the exact total in nats.
    """
    limit: dict[str, Any] = {"micro_batch": config.batch.micro_batch, "max_batches": max_batches}
    num_batches = valid.num_batches(num_replicas=ranks.replicas, **limit)
    batches = valid.batches(replica=ranks.replica, num_replicas=ranks.replicas, **limit)
    mean = float(engine.eval_batch(batches, num_micro_batches=num_batches).item())
    nats = mean * num_batches * ranks.replicas * config.batch.micro_batch * config.data.seq_length
    return nats, valid.num_scored(**limit), valid.num_chars(**limit)


def evaluate_and_sample(engine: Any, config: RunConfig, datasets: Datasets, run: Run) -> None:
    """Validation figures and a passage of text, at the current step."""
    run.meter.pause()
    with run.heartbeat.phase("evaluation"):
        scores = evaluate(engine, config, datasets, run.ranks)
    run.results |= scores
    with run.heartbeat.phase("sample"):
        passage = _passage(engine, config, datasets)
    if run.outputs:
        step = engine.global_steps
        run.outputs.write([{"step": step, **scores}])
        for tag in (name.removesuffix("/loss") for name in scores if name.endswith("/loss")):
            loss, bits = scores[f"{tag}/loss"], scores[f"{tag}/bits_per_char"]
            run.outputs.say(f"step {step}/{run.last_step} | {tag} loss {loss:.4f} | {bits:.3f} bits per character")
        if passage:
            run.outputs.say(f"step {step}/{run.last_step} | sample: {' '.join(passage.split())}")
            run.outputs.passage(passage, step)
    run.meter.go_on()


def _passage(engine: Any, config: RunConfig, datasets: Datasets) -> str:
    plan = config.training
    if not plan.sample_tokens:
        return ""
    # What does not fit is said at the start (`preflight.sample_notes`).
    prompt = datasets.tokenizer.encode(plan.sample_prompt or "")
    if not prompt:  # The first tokens of the held-out text fit any corpus.
        _, labels = next(datasets.valid.batches(replica=0, num_replicas=1, micro_batch=1))
        prompt = [token for token in labels[0, :HELD_OUT_PROMPT_TOKENS].tolist() if token >= 0]
    prompt = prompt[: max(1, config.model.max_seq_length - 1)]
    seed = config.run.seed + engine.global_steps
    vocab_size = min(datasets.tokenizer.vocab_size, config.model.vocab_size)
    tokens = min(plan.sample_tokens, config.model.max_seq_length - len(prompt))
    ids = sample_text(engine, prompt, tokens=tokens, temperature=plan.sample_temperature, seed=seed, vocab_size=vocab_size)
    # A passage may end, or a young model err, within a character of several byte tokens.
    return datasets.tokenizer.decode(ids).replace("\ufffd", "")


def save(engine: Any, config: RunConfig, datasets: Datasets, run: Run, *, wait: bool) -> None:
    """Save and publish, behind the training unless it has to wait. A save that fails is logged; the checkpoints before it are there."""
    run.meter.pause()
    began = time.monotonic()
    finish_save(run)
    if run.outputs and (waited := time.monotonic() - began) > LONG_WAIT_SECONDS:
        run.outputs.say(f"training waited {waited:.1f} s for the save before this one. A larger training.save_interval_steps avoids it.")
    facts = {"metrics": dict(run.results), "precision": "bf16" if config.uses_bf16 else "fp32", "text": datasets.text, **run.spikes.facts()}
    with run.heartbeat.phase("snapshot"):
        run.saver.start(engine, facts)
    if wait or not config.training.async_save:
        finish_save(run)
    run.meter.go_on()


def finish_save(run: Run) -> None:
    """Wait for the save under way, if there is one."""
    if run.saver.is_busy:
        with run.heartbeat.phase("save"):
            seconds = run.saver.finish()
        run.heartbeat.took("save", seconds)
