"""From a run to a Hugging Face folder that others can load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from data.tokenizers.tokenizer_folder import load as load_tokenizer
from ds_configs.atomic_files import object_or_nothing
from inference.export import export, find_folder, main
from inference.exporting.model_path import ModelPath, find_model, load_run_config
from inference.generate import main as generate
from inference.to_gguf import to_gguf
from model.gpt import GPT
from tests.inference.conftest import STEPS
from training.checkpoints.find_and_verify import CheckpointError

# Sums over the same terms in another order; logits are of the order of 1.
TOLERANCE = 2e-5

pytestmark = pytest.mark.distributed


def logits_of_run(run: Path, seed: int, tokens: torch.Tensor) -> torch.Tensor:
    """Of the weights that `save_run.py` made the masters."""
    with torch.no_grad():
        return GPT(load_run_config(run)[1], seed=seed).eval()(tokens)


def logits_of_folder(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits
    return logits


def test_an_export_loads_in_transformers_with_the_masters_of_the_newest_checkpoint(saved_run: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokens = torch.arange(2, 66).view(1, 64)
    for format in ("gpt2", "opt"):
        out = tmp_path / format
        assert main([str(saved_run), str(out), "--format", format]) == 0
        assert (logits_of_folder(out, tokens) - logits_of_run(saved_run, STEPS[-1], tokens)).abs().max() < TOLERANCE

        ours, theirs = load_tokenizer(saved_run / "tokenizer"), AutoTokenizer.from_pretrained(out)
        text = "第一回\n床前明月光，<|endoftext|> mixed text 𠮷"
        assert theirs(text).input_ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
        assert theirs.eos_token_id == object_or_nothing(out / "generation_config.json")["eos_token_id"] == ours.eos_id


def test_a_card_says_what_the_model_is_where_it_is_from_and_how_good(saved_run: Path, tmp_path: Path) -> None:
    export(find_model(saved_run), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for fact in ("# tiny", "Saved for a test.", "| parameters | 19,080 |", "| valid/bits_per_char | 7.25 |"):
        assert fact in card
    assert "Step 5 of the run" in card
    assert "Trained on 20 rows of 64 tokens, 1,280 tokens in all." in card
    assert '"path": "verse.txt"' in card
    assert '"git_commit": "0123abc"' in card


def test_an_export_is_made_again_only_for_a_newer_checkpoint_or_another_format(run: Path, tmp_path: Path) -> None:
    out, newest = tmp_path / "out", run / "checkpoints" / f"step{STEPS[-1]:08d}"
    hidden = newest.rename(tmp_path / newest.name)
    assert export(find_model(run), out)
    assert object_or_nothing(out / "export.json")["step"] == STEPS[0]
    weights = (out / "model.safetensors").stat()
    assert not export(find_model(run), out)
    assert (out / "model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns

    hidden.rename(newest)
    assert export(find_model(run), out)
    assert object_or_nothing(out / "export.json")["step"] == STEPS[-1]
    assert export(find_model(run), out, "opt")
    assert not export(find_model(run), out, "opt")


@pytest.mark.parametrize("damage", ["no weights", "half of the weights", "a bit of the weights", "no tokenizer"])
def test_an_export_that_lost_something_is_made_again(run: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    export(find_model(run), out)
    weights = out / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "half of the weights":
        weights.write_bytes(whole[: len(whole) // 2])
    elif damage == "a bit of the weights":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 64]))
    else:
        (weights if "weights" in damage else out / "tokenizer.json").unlink()
    assert export(find_model(run), out)
    assert weights.read_bytes() == whole
    assert not export(find_model(run), out)


def test_a_folder_whose_weights_were_changed_is_refused_by_name_and_one_without_a_record_is_not(run: Path, tmp_path: Path) -> None:
    out, weights = tmp_path / "out", tmp_path / "out" / "model.safetensors"
    export(find_model(run), out)
    assert find_folder(out) == out
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    for use in (
        find_folder,
        lambda folder: export(find_model(folder), tmp_path / "other", "opt"),
        lambda folder: to_gguf(folder, tmp_path / "a"),
    ):
        with pytest.raises(CheckpointError, match=r"model.safetensors was changed after it was written .* Export it again, or remove "):
            use(out)
    own = find_folder(run)
    for wrong in ("x", None, {weights.name: "x"}, {weights.name: {"bytes": weights.stat().st_size}}):
        for folder in (out, own):
            record = object_or_nothing(folder / "export.json") | {"weights": wrong}
            (folder / "export.json").write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(
            CheckpointError, match=r"export.json: its weights are not as an export records them\. Export it again, or remove "
        ):
            find_folder(out)
        assert find_folder(run) == own, "which is made again"
    (out / "export.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"export.json: unreadable .*\. Export it again, or remove "):
        find_folder(out)
    (out / "export.json").unlink()
    assert find_folder(out) == out


def test_an_export_in_several_files_is_made_again_when_one_is_missing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.hugging_face.conversion.SHARD_BYTES", 20_000)
    export(find_model(run), tmp_path / "out")
    assert not export(find_model(run), tmp_path / "out")
    next((tmp_path / "out").glob("model-00002-*")).unlink()
    assert export(find_model(run), tmp_path / "out")


def test_ctrl_c_is_exit_code_130(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inference.export.find_model", interrupt)
    assert main([str(run), str(tmp_path / "out")]) == 130


def test_a_damaged_newest_checkpoint_gives_the_one_before_it_once(run: Path, tmp_path: Path) -> None:
    torn = run / "checkpoints" / f"step{STEPS[-1]:08d}"
    next(torn.glob("*optim_states.pt")).write_bytes(b"")
    assert export(find_model(run), tmp_path / "out")
    assert object_or_nothing(tmp_path / "out" / "export.json")["step"] == STEPS[0]
    assert not export(find_model(run), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"has 0 bytes.*\. Name the run's folder"):
        export(find_model(torn), tmp_path / "other")


def test_one_checkpoint_can_be_exported_by_its_folder(run: Path, tmp_path: Path) -> None:
    assert export(find_model(run / "checkpoints" / f"step{STEPS[0]:08d}"), tmp_path / "out")
    tokens = torch.arange(2, 66).view(1, 64)
    assert (logits_of_folder(tmp_path / "out", tokens) - logits_of_run(run, STEPS[0], tokens)).abs().max() < TOLERANCE


def test_an_export_says_what_padding_cutting_and_converting_need(run: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export(find_model(run), tmp_path / "out", "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.pad_token, tokenizer.model_max_length) == ("<|endoftext|>", 64)
    batch = tokenizer(["床前明月光", "月"], padding=True, return_tensors="pt")
    assert batch.attention_mask.sum(1).tolist() == [len(tokenizer("床前明月光").input_ids), len(tokenizer("月").input_ids)]
    assert object_or_nothing(tmp_path / "out" / "config.json")["n_ctx"] == 64
    # An export of an earlier version, which lacks them, is made again.
    record = object_or_nothing(tmp_path / "out" / "export.json")
    del record["layout"]
    (tmp_path / "out" / "export.json").write_text(json.dumps(record), encoding="utf-8")
    assert export(find_model(run), tmp_path / "out", "gpt2")
    assert not export(find_model(run), tmp_path / "out", "gpt2")


def test_what_no_export_writes_stays_when_it_is_made_again(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(find_model(run), out)
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("x", encoding="utf-8")
    (out / "model.gguf").write_text("x", encoding="utf-8")
    (out / "link").symlink_to("nowhere")
    for name in ("model-00001-of-00002.safetensors", "merges.txt"):
        (out / name).write_text("of an earlier export", encoding="utf-8")
    assert export(find_model(run), out, "opt")
    assert (out / "notes" / "mine.txt").read_text(encoding="utf-8") == (out / "model.gguf").read_text(encoding="utf-8") == "x"
    assert (out / "link").is_symlink()
    assert not (out / "model-00001-of-00002.safetensors").exists()
    assert not (out / "merges.txt").exists() or (out / "merges.txt").read_text(encoding="utf-8") != "of an earlier export"
    assert object_or_nothing(out / "config.json")["model_type"] == "opt"


def test_a_gguf_file_of_former_weights_is_told_so(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out, newest = tmp_path / "my out", run / "checkpoints" / f"step{STEPS[-1]:08d}"
    hidden = newest.rename(tmp_path / newest.name)
    export(find_model(run), out)
    (out / "model.gguf").write_text("x", encoding="utf-8")
    assert export(find_model(run), out, "opt")
    assert "model.gguf" not in caplog.text, "it holds the same weights"
    hidden.rename(newest)
    assert export(find_model(run), out)
    command = f"Make it anew: .venv/bin/python -m inference.to_gguf '{out}' '{out / 'model.gguf'}'"
    assert f"{out / 'model.gguf'}: is kept, and is older than the weights beside it now. {command}" in caplog.messages
    assert (out / "model.gguf").read_text(encoding="utf-8") == "x"


def test_a_folder_becomes_a_folder_of_another_format(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export(find_model(run), tmp_path / "gpt2", "gpt2")
    settings = object_or_nothing(tmp_path / "gpt2" / "generation_config.json") | {"temperature": 0.6}
    for name, text in (("generation_config.json", json.dumps(settings)), ("chat_template.jinja", "x"), ("LICENSE", "x")):
        (tmp_path / "gpt2" / name).write_text(text, encoding="utf-8")
    assert export(find_model(tmp_path / "gpt2"), tmp_path / "opt", "opt")
    tokens = torch.arange(2, 66).view(1, 64)
    assert object_or_nothing(tmp_path / "opt" / "config.json")["model_type"] == "opt"
    assert (logits_of_folder(tmp_path / "opt", tokens) - logits_of_folder(tmp_path / "gpt2", tokens)).abs().max() < TOLERANCE
    assert (tmp_path / "opt" / "tokenizer.json").read_bytes() == (tmp_path / "gpt2" / "tokenizer.json").read_bytes()
    assert object_or_nothing(tmp_path / "opt" / "config.json")["eos_token_id"] == 0
    assert object_or_nothing(tmp_path / "opt" / "generation_config.json") == settings
    assert (tmp_path / "opt" / "chat_template.jinja").is_file()
    assert f"{tmp_path / 'gpt2'}: not taken along: LICENSE" in caplog.messages
    before, after = (object_or_nothing(tmp_path / name / "export.json") for name in ("gpt2", "opt"))
    assert before.pop("weights") != after.pop("weights")
    assert after == {**before, "folder": str(tmp_path / "gpt2"), "format": "opt"}, "of the same checkpoint, and the same text"


def test_what_cannot_be_exported_leaves_everything_as_it_was(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exports" / "out"
    export(find_model(run), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="llama"):
        export(find_model(run), out, "llama")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_folder_that_is_no_export_is_never_replaced(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x", encoding="utf-8")
    assert main([str(run), str(tmp_path / "precious")]) == 2
    assert capsys.readouterr().err == (
        f"inference.export: {tmp_path / 'precious'}: is there already and is no export, so it is not replaced. Name a new folder.\n"
    )
    assert (tmp_path / "precious" / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()
    assert export(find_model(run), tmp_path / "empty")


def test_a_run_without_its_tokenizer_is_not_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "tokenizer")
    assert main([str(run), str(tmp_path / "out")]) == 2
    assert f"{run / 'tokenizer'}" in capsys.readouterr().err


def test_a_run_is_exported_once_and_generated_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(run), "--prompt", "床前明月", "--new-tokens", "12"]
    assert generate(command) == 0
    first = capsys.readouterr().out
    written = (run / "export" / "model.safetensors").stat().st_mtime_ns
    assert generate(command) == 0
    assert capsys.readouterr().out == first
    assert (run / "export" / "model.safetensors").stat().st_mtime_ns == written
    assert find_folder(run) == run / "export"
    assert not export(ModelPath("run", run, run), run / "export")


def test_a_run_that_cannot_be_written_is_read_from_its_export_and_else_says_how(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: run not in (Path(path), *Path(path).parents))  # Root may write anywhere.
    with pytest.raises(CheckpointError) as refused:
        find_folder(run)
    assert str(refused.value) == (
        f"{run}: cannot be written, and has no export of step{STEPS[1]:08d}. Make one in a folder of yours, and name that: "
        f".venv/bin/python -m inference.export {run} FOLDER"
    )
    monkeypatch.undo()
    made = find_folder(run)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert find_folder(run) == made


def test_a_named_checkpoint_is_exported_beside_the_newest_and_generated_from(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = f"step{STEPS[0]:08d}", f"step{STEPS[1]:08d}"
    options = ["--prompt", "床前明月", "--new-tokens", "12", "--output", str(tmp_path / "texts.jsonl")]
    for path, tag, folder in ((f"{run}@{old}", old, f"export_{old}"), (str(run), new, "export")):
        assert generate([path, *options]) == 0
        assert json.loads((tmp_path / "texts.jsonl").read_text(encoding="utf-8"))["checkpoint"] == tag
        assert object_or_nothing(run / folder / "export.json")["checkpoint"] == tag
    capsys.readouterr()
    assert generate([f"{run}@step00000004", *options]) == 2
    assert f"{run}: has no finished checkpoint 'step00000004'. Name one of {old}, {new}." in capsys.readouterr().err
    assert generate([f"{run}2@{old}", *options]) == 2
    assert f"{run}2: no such run." in capsys.readouterr().err


def test_which_checkpoint_is_used_and_whether_it_is_the_newest_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = f"step{STEPS[0]:08d}", f"step{STEPS[1]:08d}"
    older = f"checkpoint: {old}; the newest of its run is {new}\n"
    for path, said in ((run, f"checkpoint: {new}\n"), (run.with_name(f"{run.name}@{old}"), older), (run / f"export_{old}", older)):
        capsys.readouterr()
        find_folder(path)
        assert capsys.readouterr().err.endswith(said)
