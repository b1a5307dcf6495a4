"""The generate command: what it writes, and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.generate import main, parse
from inference.generation.prompts import batches_of
from inference.generation.settings import SamplingParams
from tests import processes
from tests.inference.tiny_folder import NUM_TOKENS, save_tiny

PROMPT = "床前明月光，"
POSITIONS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, verse: Path) -> Path:
    """An OPT with random weights: the one of our formats that also runs on several processes."""
    return save_tiny(
        "opt", tmp_path_factory.mktemp("hf") / "model", verse, positions=POSITIONS, num_attention_heads=2, vocab_size=NUM_TOKENS
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_text_goes_to_standard_output_and_everything_else_to_standard_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--prompt", PROMPT, "--new-tokens", "20"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(PROMPT)
    assert len(said.out) > len(PROMPT) + 1
    assert "20 tokens in" in said.err


def test_texts_are_written_to_a_file_as_objects_or_as_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [PROMPT, "红豆", "千山鸟飞绝，万径人踪灭"]
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    options = ["--temperature", "0", "--new-tokens", "20", "--batch-size", "2"]
    assert main([str(folder), *given, *options, "--output", str(tmp_path / "texts.jsonl")]) == 0
    shown = capsys.readouterr().out
    entries = lines(tmp_path / "texts.jsonl")
    assert [entry["prompt"] for entry in entries] == prompts
    assert [entry["num_tokens"] for entry in entries] == [20, 20, 20]
    assert [shown.index(f"[{number}/3]") for number in (1, 2, 3)] == sorted(shown.index(f"[{number}/3]") for number in (1, 2, 3))

    assert main([str(folder), *given, *options, "--output", str(tmp_path / "texts.txt")]) == 0
    text = (tmp_path / "texts.txt").read_text(encoding="utf-8")
    # Greedy: the second command wrote the same texts as the first.
    assert text == "".join(f"{entry['prompt']}{entry['text']}\n\n" for entry in entries)


def test_equal_prompts_of_two_batches_get_different_texts(folder: Path, tmp_path: Path) -> None:
    options = ["--new-tokens", "20", "--temperature", "1", "--top-p", "1", "--batch-size", "1"]
    assert main([str(folder), "--prompt", PROMPT, "--prompt", PROMPT, *options, "--output", str(tmp_path / "texts.jsonl")]) == 0
    first, second = lines(tmp_path / "texts.jsonl")
    assert first["text"] != second["text"]


def test_each_prompt_has_its_samples_and_a_line_says_how_to_get_one_again(folder: Path, tmp_path: Path) -> None:
    options = ["--new-tokens", "20", "--temperature", "1", "--top-p", "1", "--dtype", "fp32", "--output", str(tmp_path / "texts.jsonl")]
    sampled = [str(folder), "--prompt", PROMPT, "--prompt", "红", "--num-samples", "3", "--seed", "7", "--batch-size", "4", *options]
    assert main(sampled) == 0
    texts = lines(tmp_path / "texts.jsonl")
    assert [(text["prompt"], text["sample"], text["seed"]) for text in texts] == [
        *((PROMPT, 1, 7), (PROMPT, 2, 8), (PROMPT, 3, 9)),
        *(("红", 1, 10), ("红", 2, 11), ("红", 3, 12)),
    ]
    assert len({text["text"] for text in texts}) == 6
    # One of the second batch, which was padded beside others, by itself: the seed that the line names is enough.
    assert main([str(folder), "--prompt", "红", "--seed", "11", *options]) == 0
    (again,) = lines(tmp_path / "texts.jsonl")
    assert again["text"] == texts[4]["text"]
    assert again["settings"] == {
        **{"new_tokens": 20, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0},
        **{"stop": [], "stop_at": [], "dtype": "fp32"},
    }
    assert (again["model"], again["checkpoint"], again["new_document"]) == (str(folder), None, False)


@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_the_first_seed_follows_the_last(folder: Path, tmp_path: Path, batch_size: str) -> None:
    options = ["--prompt", PROMPT, "--new-tokens", "20", "--dtype", "fp32", "--output", str(tmp_path / "texts.jsonl")]
    assert main([str(folder), *options, "--seed", "0"]) == 0
    [first] = lines(tmp_path / "texts.jsonl")
    assert main([str(folder), *options, "--seed", str(2**63 - 1), "--num-samples", "2", "--batch-size", batch_size]) == 0
    last, following = lines(tmp_path / "texts.jsonl")
    assert (last["seed"], following["seed"]) == (2**63 - 1, 0)
    assert following["text"] == first["text"] != last["text"]


def test_a_text_ends_before_its_stop(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(folder), "--prompt", PROMPT, "--new-tokens", "40", "--temperature", "0", "--output", str(tmp_path / "texts.jsonl")]
    assert main(command) == 0
    (whole,) = lines(tmp_path / "texts.jsonl")
    # Two characters of the text that do not begin it.
    stop = next(whole["text"][i : i + 2] for i in range(2, 30) if whole["text"].find(whole["text"][i : i + 2]) == i)
    capsys.readouterr()
    assert main([*command, "--stop", "never written", "--stop", stop]) == 0
    (ended,) = lines(tmp_path / "texts.jsonl")
    assert ended["text"] == whole["text"][: whole["text"].index(stop)]
    assert ended["finish_reason"] == "stop"
    assert ended["num_tokens"] < whole["num_tokens"]
    assert capsys.readouterr().out == f"{PROMPT}{ended['text']}\n"


def test_a_document_can_begin_with_a_prompt_or_with_nothing(folder: Path, tmp_path: Path) -> None:
    options = ["--new-document", "--new-tokens", "20", "--temperature", "0", "--output", str(tmp_path / "texts.jsonl")]
    texts = []
    for prompts in ([], ["--prompt", PROMPT]):
        assert main([str(folder), *prompts, *options]) == 0
        texts += lines(tmp_path / "texts.jsonl")
    assert [text["prompt"] for text in texts] == ["", PROMPT]
    (plain,), (begun,) = (batches_of(["红"], folder, SamplingParams(new_tokens=8), 1, begin_documents=begins) for begins in (False, True))
    # The end of the document before, which this tokenizer gives the id 0.
    assert begun.tokens[0] == [0, *plain.tokens[0]]


def test_new_tokens_beyond_the_positions_are_cut_and_it_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["红", PROMPT * 3]
    batches = batches_of(prompts, folder, SamplingParams(new_tokens=50), batch_size=1)
    room = POSITIONS - len(batches[1].tokens[0])
    assert [batch.sampling.new_tokens for batch in batches] == [50, room]
    assert capsys.readouterr().err == f"Adding {room} tokens instead of 50: prompt 2 leaves no more of 64 positions.\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no prompt. Give one with --prompt"),
        (["--prompt", " "], "prompt 1 is empty"),
        (["--prompt", PROMPT * 20], "tokens and the model 64 positions, so nothing can follow. Shorten the prompt."),
        (["--prompt", PROMPT, "--temperature", "-1"], "temperature = -1; it must be 0 (greedy)"),
        (["--prompt", PROMPT, "--new-tokens", "0"], "number of new tokens = 0"),
        (["--prompt", PROMPT, "--batch-size", "0"], "batch size = 0"),
        (["--prompt", PROMPT, "--num-samples", "0"], "number of samples = 0"),
        (["--prompt", PROMPT, "--stop", ""], "a text to stop at is empty"),
        (["--prompt", PROMPT, "--output", "nowhere/texts.txt"], "nowhere/texts.txt: cannot be written"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main([str(folder), *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("inference.generate: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_a_full_disk_is_one_line_and_exit_code_2(folder: Path, root: Path) -> None:
    command = [sys.executable, "-m", "inference.generate", str(folder), "--prompt", PROMPT, "--new-tokens", "4", "--dtype", "fp32"]
    done = processes.run([*command, "--output", "/dev/full"], cwd=root)
    assert done.returncode == 2, done.stderr
    assert "the text cannot be written ([Errno 28] No space left on device). Is there room on that disk?" in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_about_the_folder_are_told_before_torch_is_imported(tmp_path: Path, root: Path) -> None:
    run = tmp_path / "runs" / "young"
    (run / "checkpoints" / "step00000010").mkdir(parents=True)
    (run / "config.json").write_text('{"model": {"family": "gpt2"}, "run": {"name": "young"}}', encoding="utf-8")
    program = (
        "import sys; from inference.generate import main\n"
        f"codes = [main([path, '--prompt', 'x']) for path in {[str(tmp_path / 'nowhere'), str(tmp_path), str(root / 'pyproject.toml')]}]\n"
        "print(codes, [name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    # Elsewhere than in the checkout, where a person may have runs already, which the first line would list.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = processes.run([sys.executable, "-c", program], cwd=elsewhere, env=environment)
    assert done.stdout == "[2, 2, 2] []\n", done.stderr
    nowhere, neither, file = done.stderr.splitlines()
    assert "nowhere: no such folder. Train one" in nowhere
    assert "neither a run" in neither
    assert "pyproject.toml: is a file" in file


def test_several_processes_need_an_exported_folder_and_no_standard_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "config.json").write_text('{"model": {"family": "gpt2"}}', encoding="utf-8")
    assert main([str(tmp_path), "--prompt", PROMPT]) == 2
    assert f"python -m inference.export {tmp_path} OUT --format opt" in capsys.readouterr().err
    assert main([str(folder), "--prompt-file", "-"]) == 2
    assert "several processes cannot share standard input" in capsys.readouterr().err
    # What all see alike is said once.
    monkeypatch.setenv("RANK", "1")
    assert main([str(folder), "--prompt-file", "-"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.distributed
def test_two_processes_write_what_one_does_and_say_once_which_checkpoint_it_is(folder: Path, tmp_path: Path, root: Path) -> None:
    folder = Path(shutil.copytree(folder, tmp_path / "model"))
    (folder / "export.json").write_text('{"checkpoint": "step00000005"}', encoding="utf-8")
    options = ["--prompt", PROMPT, "--prompt", "红豆", "--new-tokens", "20", "--dtype", "fp32"]
    assert main([str(folder), *options, "--output", str(tmp_path / "one.jsonl")]) == 0
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node=2", "--standalone", "-m", "inference.generate"]
    command = [*torchrun, str(folder), *options, "--output", str(tmp_path / "two.jsonl")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = processes.run(command, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("checkpoint: step00000005\n") == 1, done.stderr
    # Sums of halves differ in the last bits; a draw would have to lie exactly between two tokens to change.
    assert (tmp_path / "two.jsonl").read_text(encoding="utf-8") == (tmp_path / "one.jsonl").read_text(encoding="utf-8")


def test_a_closed_output_does_not_leave_texts_out_without_a_word(folder: Path, tmp_path: Path, root: Path) -> None:
    output = tmp_path / "texts.jsonl"
    command = [sys.executable, "-m", "inference.generate", str(folder), "--prompt", PROMPT, "--new-tokens", "5", "--output", str(output)]
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does when it has had enough
    done = processes.run(command, cwd=root, stdout=writing)
    os.close(writing)
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith(f"inference.generate: standard output was closed, and {output} has 0 of 1 texts.\n")


def test_texts_go_to_a_file_where_there_is_no_standard_output(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as a shell's >&- leaves it
    command = [str(folder), "--prompt", PROMPT, "--new-tokens", "5", "--output"]
    assert main([*command, "/dev/full"]) == 2
    assert "the text cannot be written ([Errno 28] No space left on device)" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "texts.jsonl")]) == 0
    assert [text["prompt"] for text in lines(tmp_path / "texts.jsonl")] == [PROMPT]


def test_the_file_of_the_prompts_is_not_replaced_by_the_texts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("红豆\n", encoding="utf-8")
    assert main([str(folder), "--prompt-file", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "prompts.txt")]) == 2
    assert "prompts.txt: holds the prompts, which the texts would replace." in capsys.readouterr().err
    assert (tmp_path / "prompts.txt").read_text(encoding="utf-8") == "红豆\n"


def test_ctrl_c_while_the_model_is_loaded_is_exit_code_130(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inference.generate.choose_dtype", interrupt)
    assert main([str(folder), "--prompt", PROMPT]) == 130


def test_defaults_are_those_of_the_settings() -> None:
    options = parse(["runs/quickstart"])
    for field in dataclasses.fields(SamplingParams):
        assert getattr(options, field.name) == ([] if field.default == () else field.default), field.name
