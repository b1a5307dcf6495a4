"""What a preparation did, for people: report.json, the same as a table, and a picture of document lengths."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import tokenizer
from data.cleaning import total_rules
from data.config import DataConfig
from data.pipeline import Steps, Tokenized
from data.tasks import Result, write_json
from data.tokenizing import SPLITS, chars_path, counts_path, split_prefix

_NUM_FREQUENT = 20


def write(config: DataConfig, steps: Steps, splits: dict[str, Any], folder: Path) -> None:
    """Write report.json, report.txt and, where matplotlib is installed, lengths.png into a store's folder."""
    lengths = {name: _lengths(getattr(steps, name), name) for name in SPLITS}
    content = {
        "corpus": config.name,
        "steps": _steps(steps, splits),
        "bad_input": {"records": sum(result["num_bad"] for result in steps.cleaned), "samples": _bad_samples(steps.cleaned)},
        "splits": {name: {**_totals(splits[name]), "document_chars": _quantiles(lengths[name])} for name in SPLITS},
        "tokens": _tokens(steps),
    }
    write_json(folder / "report.json", content)
    (folder / "report.txt").write_text(table(content), encoding="utf-8")
    _draw(np.concatenate(list(lengths.values())), folder / "lengths.png")


def table(content: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"corpus: {content['corpus']}", "", f"{'step':<24}{'documents':>14}{'characters':>18}{'tokens, about':>18}{'dropped':>12}"]
    for step in content["steps"]:
        lines.append(f"{step['name']:<24}{step['documents']:>14,}{step['chars']:>18,}{step['tokens_estimated']:>18,}{step['dropped']:>12,}")
    for name, split in content["splits"].items():
        per_token = split["chars"] / max(1, split["tokens"])
        lines.append(f"{name:<24}{split['documents']:>14,}{split['chars']:>18,}")
        lines.append(f"{'':<24}{split['tokens']:,} tokens, {per_token:.3f} characters a token")
    tokens = content["tokens"]
    lines += ["", f"unknown or single bytes: {tokens['fallback_ratio']:.4%} of the tokens", "most frequent tokens:"]
    lines += ["  ".join(f"{json.dumps(entry['token'], ensure_ascii=False)} {entry['count']:,}" for entry in tokens["frequent"])]
    bad = content["bad_input"]
    lines += ["", f"could not be read: {bad['records']:,} records"]
    lines += [f"  {sample['source']}: {sample['reason']}" for sample in bad["samples"]]
    for step in content["steps"]:
        if step.get("samples"):
            lines += ["", f"dropped by {step['name']}, for example:"]
            lines += [f"  {sample['source']}: {sample['text']}" for sample in step["samples"]]
    return "\n".join(lines) + "\n"


def _steps(steps: Steps, splits: dict[str, Any]) -> list[dict[str, Any]]:
    """Documents and characters behind each step, and what it dropped.

    Only what is left in the end is tokenized; the tokens of earlier steps are estimated from their characters.
    """
    num_tokens, num_chars = (sum(splits[name][unit] for name in SPLITS) for unit in ("tokens", "chars"))
    rows = [
        {
            "name": "read",
            "documents": sum(result["documents_in"] for result in steps.cleaned),
            "chars": sum(result["chars_in"] for result in steps.cleaned),
            "dropped": 0,
        }
    ]
    for name, count in total_rules(steps.cleaned).items():
        kept = count.documents_in - count.documents_dropped
        row = {"name": f"clean: {name}", "documents": kept, "chars": count.chars_out, "dropped": count.documents_dropped}
        rows.append({**row, "changed": count.documents_changed, "samples": count.samples})
    if steps.copies is not None:
        documents = sum(result["documents"] for result in steps.cleaned)
        dropped = steps.copies["dropped"]
        rows.append(
            {
                "name": "deduplicate",
                "documents": documents - sum(dropped.values()),
                "chars": sum(steps.copies["chars"]),
                "dropped": sum(dropped.values()),
                "dropped_exact": dropped["exact"],
                "dropped_near": dropped["near"],
                "samples": steps.copies["samples"],
            }
        )
    return [{**row, "tokens_estimated": round(row["chars"] * num_tokens / num_chars)} for row in rows]


def _totals(split: dict[str, Any]) -> dict[str, int]:
    return {name: split[name] for name in ("documents", "chars", "tokens")}


def _bad_samples(results: Sequence[Result]) -> list[dict[str, str]]:
    return [sample for result in results for sample in result["bad"]][:100]


def _lengths(tokenized: Sequence[Tokenized], name: str) -> np.ndarray:
    arrays = [np.load(chars_path(split_prefix(item.output, name))) for item in tokenized]
    return np.concatenate([np.zeros(0, dtype=np.int32), *arrays])


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
    """Lengths of documents in characters; the report's numbers are whole so that they never differ in a last digit."""
    if not len(lengths):
        return {}
    names = ("least", "quarter", "median", "three_quarters", "most")
    return {name: int(value) for name, value in zip(names, np.quantile(lengths, (0, 0.25, 0.5, 0.75, 1)), strict=True)}


def _tokens(steps: Steps) -> dict[str, Any]:
    used = {item.output: None for item in (*steps.train, *steps.valid)}
    made = tokenizer.load(steps.tokenizer)
    counts = np.zeros(made.vocab_size, dtype=np.int64)
    for output in used:
        counts += np.load(counts_path(output))
    frequent = np.argsort(-counts, kind="stable")[:_NUM_FREQUENT]
    return {
        "vocab_size": made.vocab_size,
        "used": int(np.count_nonzero(counts)),
        "fallback_ratio": round(float(counts[made.fallback_ids].sum() / max(1, counts.sum())), 8),
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
    longest = max(2, int(lengths.max(initial=2)))
    axes.hist(lengths, bins=np.unique(np.geomspace(1, longest + 1, 60).astype(int)).tolist(), color="#8c2f39")
    axes.set(xscale="log", xlabel="characters in a document", ylabel="documents", title=f"{len(lengths):,} documents")
    figure.savefig(path, dpi=100, metadata={"Software": None})
