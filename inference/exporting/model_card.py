"""The README.md of an exported folder: what the model is, what it was trained on and how, how well it does, and how to load it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_configs.atomic_files import object_or_nothing, write_text
from inference.evaluation import results
from model.config import ModelConfig
from model.flops import count_parameters
from training.checkpoints.find_and_verify import Checkpoint

log = logging.getLogger(__name__)


def model_card(folder: Path, values: Mapping[str, Any], model: ModelConfig, checkpoint: Checkpoint) -> str:
    """Markdown with the metadata block that the Hugging Face hub reads.

    Args:
        folder: The run's.
        values: Its resolved configuration.
        model: Its model section, checked.
        checkpoint: Where the weights are from.
    """
    run = values.get("run", {})
    sections = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---",
        f"# {run.get('name', 'model')}",
        str(run.get("description", "")),
        f"Step {checkpoint.step} of the run, from its fp32 master weights (checkpoint `{checkpoint.folder.name}`).",
        _USE,
        "## Model\n\n" + results.facts_table(_model_rows(model)),
        "## Results\n\n" + _results(checkpoint),
        _EVALUATION_BEGINS + _EVALUATION_ENDS,
        "## Data\n\n" + _seen(values, checkpoint) + _text(checkpoint, folder) + _json(values.get("data", {})),
        "## Configuration\n\nThe whole run, as `config.json` in its folder said it.\n\n"
        + _json({key: value for key, value in values.items() if key != "data"}),
    ]
    if provenance := object_or_nothing(folder / "config.json").get("provenance"):
        sections.append("## Made with\n\n" + _json(provenance))
    return "\n\n".join(section for section in sections if section) + "\n"


def renew_evaluation(export: Path, home: Path, fingerprint: str) -> None:
    """Put into the card of an export what `home`, its run's folder, says about its checkpoint by now.

    A folder whose README.md is no card of ours is left alone, and so is a card where that is unreadable, which is said.
    """
    path = export / "README.md"
    if not path.is_file():
        return
    card = path.read_text(encoding="utf-8")
    before, begins, rest = card.partition(_EVALUATION_BEGINS)
    _, ends, after = rest.partition(_EVALUATION_ENDS)
    try:
        found = results.read(home, fingerprint)
    except ValueError as error:
        log.warning("%s; the evaluation in %s is left as it is", error, path)
        return
    body = "\n\n".join(["## Evaluation", f"Of checkpoint `{found[0]['checkpoint']}`.", *map(results.markdown, found)]) if found else ""
    renewed = before + begins + (f"\n{body}\n" if body else "") + ends + after
    if begins and ends and renewed != card:
        write_text(path, renewed)
        if results.read(home, fingerprint) != found:  # Another evaluation has added to it.
            renew_evaluation(export, home, fingerprint)


_EVALUATION_BEGINS, _EVALUATION_ENDS = "<!-- evaluation -->", "<!-- end of evaluation -->"
_NAMED_FILES = 20

_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```"""


def _model_rows(model: ModelConfig) -> dict[str, Any]:
    names = ("family", "vocab_size", "max_seq_length", "num_layers", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size")
    shape = {name: getattr(model, name) for name in (*names, "norm", "position", "activation", "use_bias", "tie_embeddings")}
    return {"parameters": count_parameters(model), **shape}


def _results(checkpoint: Checkpoint) -> str:
    metrics = checkpoint.manifest.get("metrics")
    note = "Losses are in nats per token; `valid/` is text that was held out."
    return f"{note}\n\n{results.facts_table(metrics)}" if metrics else "The checkpoint carries none."


def _seen(values: Mapping[str, Any], checkpoint: Checkpoint) -> str:
    samples, length = checkpoint.manifest.get("consumed_samples"), values.get("data", {}).get("seq_length")
    if not isinstance(samples, int) or not isinstance(length, int):
        return ""
    return f"Trained on {samples:,} rows of {length:,} tokens, {samples * length:,} tokens in all.\n\n"


def _text(checkpoint: Checkpoint, run: Path) -> str:
    """Which text it was, by hash."""
    from data.store.identity import STORE_RECORD  # It takes numpy along.

    text = checkpoint.manifest.get("text")
    if text is None:
        return "Which text it was is not recorded.\n\n"
    rows = {"token store": text["store"], "identity": f"`{text['identity']}`", "tokenizer (SHA-256)": f"`{text['tokenizer']}`"}
    store = object_or_nothing(run / STORE_RECORD)
    files = store.get("inputs", []) if store.get("identity") == text["identity"] else []
    rows |= {f"source: {file['name']}": f"`{file['sha256']}`" for file in files[:_NAMED_FILES]}
    if len(files) > _NAMED_FILES:
        rows["more sources"] = len(files) - _NAMED_FILES
    return results.facts_table(rows) + "\n\n"


def _json(value: object) -> str:
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"
