"""What a preparation did, for people: report.json, the same as a table, and a picture of document lengths."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataConfig
from data.steps.clean import bad_input, said, total_rules
from data.steps.pipeline import Pair, Steps
from data.steps.tasks import Result
from data.steps.tokenization import CHARS, COUNTS
from data.tokenizers import tokenizer_folder
from ds_configs.atomic_files import with_ending, write_json

_NUM_FREQUENT = 20
_NUM_BAD_SAMPLES = 100
_NUM_LISTED = 20  # In the table; report.json has all.


def write(config: DataConfig, steps: Steps, linked: Mapping[str, Sequence[Pair]], splits: dict[str, Any], folder: Path) -> None:
    """Write report.json, report.txt and, where matplotlib is installed, lengths.png into a store's folder.

    `linked` are the pairs of each split, of which none is empty; `splits` is what the manifest says about them.
    """
    lengths = {name: np.concatenate([np.load(with_ending(pair.prefix, CHARS)) for pair in pairs]) for name, pairs in linked.items()}
    content = {
        "corpus": config.name,
        "steps": _steps(config, steps, splits),
        "bad_input": _bad_input(steps.cleaned),
        "files": _files(steps.cleaned),
        "remarks": [remark for result in steps.cleaned for remark in result["remarks"]],
        "splits": {
            name: {**{unit: split[unit] for unit in ("documents", "chars", "tokens")}, "document_chars": _quantiles(lengths[name])}
            for name, split in splits.items()
        },
        "shards_without_gigatoken": steps.shards_without_gigatoken,
        "tokens": _tokens(steps.tokenizer, [pair for pairs in linked.values() for pair in pairs]),
    }
    write_json(folder / "report.json", content)
    (folder / "report.txt").write_text(table(content), encoding="utf-8")
    _draw(np.concatenate(list(lengths.values())), folder / "lengths.png")


def table(content: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"corpus: {content['corpus']}", "", f"{'step':<24}{'documents':>14}{'characters':>18}{'tokens, ~ about':>18}{'dropped':>12}"]
    for step in content["steps"]:
        tokens = ("~" if step["tokens_are"] == "estimated" else "") + f"{step['tokens']:,}"
        lines.append(f"{step['name']:<24}{step['documents']:>14,}{step['chars']:>18,}{tokens:>18}{step['dropped']:>12,}")
    for name, split in content["splits"].items():
        lines.append(f"{name:<24}{split['documents']:>14,}{split['chars']:>18,}")
        lines.append(f"{'':<24}{split['tokens']:,} tokens, {split['chars'] / split['tokens']:.3f} characters a token")
    if left := content["steps"][-1]["chars"] - sum(split["chars"] for split in content["splits"].values()):
        lines.append(f"{'in neither, for budgets':<24}{'':>14}{left:>18,}")
    tokens = content["tokens"]
    lines += ["", f"unknown or single bytes: {tokens['fallback_ratio']:.4%} of the tokens", "most frequent tokens:"]
    lines += ["  ".join(f"{json.dumps(entry['token'], ensure_ascii=False)} {entry['count']:,}" for entry in tokens["frequent"])]
    lines += _table_of_input(content)
    for step in content["steps"]:
        if step.get("samples"):
            lines += ["", f"dropped by {step['name']}, for example:"]
            lines += [f"  {sample['source']}: {sample['text']}" for sample in step["samples"]]
    return "\n".join(lines) + "\n"


def _steps(config: DataConfig, steps: Steps, splits: dict[str, Any]) -> list[dict[str, Any]]:
    """Documents and characters behind each step, what it dropped, and the tokens behind it, counted or estimated.

    Only what is left in the end is tokenized; the tokens of earlier steps are estimated from their characters, unless each
    character is a token.
    """
    num_tokens, num_chars = (sum(split[unit] for split in splits.values()) for unit in ("tokens", "chars"))
    around = config.tokenizer.add_bos + config.tokenizer.add_eos

    def row(name: str, documents: int, chars: int, dropped: int, **more: Any) -> dict[str, Any]:
        if chars == num_chars:
            tokens, how = num_tokens, "counted"
        elif config.tokenizer.kind == "characters":
            tokens, how = chars + around * documents, "counted"
        else:
            tokens, how = round(chars * num_tokens / num_chars), "estimated"
        return {"name": name, "documents": documents, "chars": chars, "dropped": dropped, **more, "tokens": tokens, "tokens_are": how}

    documents, chars = (sum(result[unit] for result in steps.cleaned) for unit in ("documents_in", "chars_in"))
    rows = [row("read", documents, chars, 0)]
    for name, count in total_rules(steps.cleaned).items():
        dropped, changed = count.documents_dropped, count.documents_changed
        # Not what the rule let through: it may be of one source only.
        documents, chars = documents - dropped, chars - count.chars_in + count.chars_out
        rows.append(row(f"clean: {name}", documents, chars, dropped, changed=changed, samples=count.samples))
    if steps.copies is not None:
        kept, chars = (sum(steps.copies[unit]) for unit in ("documents", "chars"))
        copies = {f"dropped_{kind}": number for kind, number in steps.copies["dropped"].items()}
        rows.append(row("deduplicate", kept, chars, sum(copies.values()), **copies, samples=steps.copies["samples"]))
    return rows


def _files(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each file once, however many pieces it was read in."""
    files: dict[str, dict[str, Any]] = {}
    for piece in (piece for result in results for piece in result["files"]):
        known = files.setdefault(piece["path"], {**piece, "replaced": 0})
        known["replaced"] += piece["replaced"]
    return list(files.values())


def _bad_input(results: Sequence[Result]) -> dict[str, Any]:
    reasons, files = (_ranked(result[counts] for result in results) for counts in ("bad_reasons", "bad_files"))
    samples = [sample for result in results for sample in result["bad"]][:_NUM_BAD_SAMPLES]
    return {**bad_input(results), "by_reason": reasons, "by_file": files, "samples": samples}


def _ranked(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Several counts together, the largest first."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _table_of_input(content: dict[str, Any]) -> list[str]:
    """What was read and what could not be, as lines; report.json holds the whole lists."""
    encodings = Counter(file["encoding"] or "not text" for file in content["files"])
    lines = ["", "files by encoding: " + (", ".join(f"{name} {count:,}" for name, count in _ranked([encodings]).items()) or "none")]
    replaced = [file for file in content["files"] if file["replaced"]]
    lines += [
        f"  {file['path']}: {file['encoding']}, unreadable places replaced by \ufffd: {file['replaced']:,}"
        for file in replaced[:_NUM_LISTED]
    ]
    lines += [f"  {said(remark)}" for remark in content["remarks"][:_NUM_LISTED]]
    bad = content["bad_input"]
    lines += ["", f"could not be read: {bad['records']:,} of {bad['of_records']:,} records, {bad['bytes']:,} of {bad['of_bytes']:,} bytes"]
    for title, counts in (("reason", bad["by_reason"]), ("file", bad["by_file"])):
        lines += [f"  {count:>8,}  {name}" for name, count in list(counts.items())[:_NUM_LISTED]]
        if len(counts) > _NUM_LISTED:
            lines.append(f"  and {sum(list(counts.values())[_NUM_LISTED:]):,} more by {title} in report.json")
    lines += [f"  {sample['source']}: {sample['reason']}" for sample in bad["samples"]]
    return lines


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
    """Lengths of documents in characters; the report's numbers are whole so that they never differ in a last digit."""
    names = ("least", "quarter", "median", "three_quarters", "most")
    return {name: int(value) for name, value in zip(names, np.quantile(lengths, (0, 0.25, 0.5, 0.75, 1)), strict=True)}


def _tokens(folder: Path, pairs: Sequence[Pair]) -> dict[str, Any]:
    made = tokenizer_folder.load(folder)
    counts = np.zeros(made.vocab_size, dtype=np.int64)
    for pair in pairs:
        counts += np.load(with_ending(pair.prefix, COUNTS))
    frequent = np.argsort(-counts, kind="stable")[:_NUM_FREQUENT]
    return {
        "vocab_size": made.vocab_size,
        "used": int(np.count_nonzero(counts)),
        "fallback_ratio": round(float(counts[made.fallback_ids].sum() / counts.sum()), 8),
        "frequent": [{"id": int(i), "token": made.token(int(i)), "count": int(counts[i])} for i in frequent if counts[i]],
    }


def _draw(lengths: np.ndarray, path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    longest = max(2, int(lengths.max()))
    axes.hist(lengths, bins=np.unique(np.geomspace(1, longest + 1, 60).astype(int)).tolist(), color="#8c2f39")
    axes.set(xscale="log", xlabel="characters in a document", ylabel="documents", title=f"{len(lengths):,} documents")
    figure.savefig(path, dpi=100, metadata={"Software": None})
