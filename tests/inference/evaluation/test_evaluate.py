"""The command that judges a model, held against the arithmetic of a run's own evaluation."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from data.batches.datasets import Datasets
from data.config import TokenizerConfig
from data.documents import DataError
from data.prepare import prepare
from data.tokenizers.trainers import train
from inference.evaluate import main
from inference.evaluation.generated import read_generated
from inference.evaluation.held_out import Grouping, Rows, held_out_texts, score
from inference.evaluation.questions import check_questions
from inference.exporting.model_card import renew_evaluation
from tests.conftest import LINES
from tests.inference.by_heart import learn_by_heart
from tests.inference.evaluation.conftest import SEQ_LENGTH, data_config


def as_a_run_scores(folder: Path, datasets: Datasets) -> tuple[float, float]:
    """(loss, bits per character) by the rows that training reads and the mean over B * T that the pipeline returns."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    valid, nats = datasets.valid, 0.0
    for inputs, labels in valid.batches(replica=0, num_replicas=1, micro_batch=4):
        with torch.no_grad():
            logits = model(inputs).logits
        nats += float(functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"))
    return nats / valid.num_scored(), nats / math.log(2) / valid.num_chars()


def sections(path: Path) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(path.read_text(encoding="utf-8"))["sections"]}


def evaluate(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture
def stores(store: Path, folder: Path) -> list[str]:
    """Options that name the store: an export looks in data/stores."""
    return ["--corpus", str(store)]


def test_the_score_of_held_out_text_is_a_runs_own(folder: Path, stores: list[str], datasets: Datasets, tmp_path: Path) -> None:
    evaluate(folder, *stores, "--by", "chapter", "--batch-size", "3", "--output", tmp_path / "out.json")
    found = sections(tmp_path / "out.json")["held-out text"]
    loss, bits = as_a_run_scores(folder, datasets)
    # fp32 sums in another order.
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["bits_per_char"] == pytest.approx(bits, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert (found["tokens"], found["documents"]) == (datasets.valid.num_tokens, 4)


@pytest.mark.parametrize("windows", ["stream", "documents"])
@pytest.mark.parametrize("kind", ["source", "chapter", "form"])
def test_groups_add_up_to_the_whole(
    exported: Path, store: Path, datasets: Datasets, kind: Grouping, windows: Literal["stream", "documents"]
) -> None:
    from data.inspect import find_subject

    model = AutoModelForCausalLM.from_pretrained(exported).eval()
    texts = held_out_texts(find_subject(store))
    rows = Rows(seq_length=SEQ_LENGTH, windows=windows)
    found = score(model, datasets.tokenizer, texts, rows, by=[kind], batch_size=4)
    groups = found[f"by_{kind}"].values()
    for count in ("tokens", "characters", "documents"):
        assert sum(group[count] for group in groups) == found[count]
    assert sum(group["loss"] * group["tokens"] for group in groups) == pytest.approx(found["loss"] * found["tokens"])


def test_a_text_of_ones_own_is_scored_by_chapter_and_by_form(folder: Path, tmp_path: Path) -> None:
    novel = tmp_path / "novel.txt"
    novel.write_text("".join(f"第{number}回　题\n{'，'.join(LINES)}。\n" for number in "一二三"), encoding="utf-8")
    (tmp_path / "poem.jsonl").write_text('{"text": "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"}\n', encoding="utf-8")
    evaluate(folder, "--text", novel, "--by", "chapter", "--output", tmp_path / "novel.json")
    found = sections(tmp_path / "novel.json")["text of novel.txt"]
    assert list(found["by_chapter"]) == [f"第{number}回　题" for number in "一二三"]
    assert found["characters"] == len(novel.read_text(encoding="utf-8").replace("\n第", "第").strip()), "line breaks between chapters go"
    evaluate(folder, "--text", tmp_path / "poem.jsonl", "--by", "form", "--output", tmp_path / "poem.json")
    assert list(sections(tmp_path / "poem.json")["text of poem.jsonl"]["by_form"]) == ["五言绝句"]


def test_two_files_of_one_name_are_refused_as_one_section_would_replace_the_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.txt").write_text("红豆", encoding="utf-8")
    assert main([str(folder), "--text", str(tmp_path / "a" / "own.txt"), "--text", str(tmp_path / "b" / "own.txt")]) == 2
    assert "a/own.txt: another file is called own.txt too" in capsys.readouterr().err


def test_what_is_not_scored_and_what_is_unknown_is_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(["白日依山尽，黄河入海流。"], TokenizerConfig(kind="characters", vocab_size=40), folder)
    poems = tmp_path / "poems.csv"
    poems.write_text("题目,作者,内容\n登鹳雀楼,王之涣,白日依☃尽\n", encoding="utf-8")
    evaluate(folder, "--text", poems, "--output", tmp_path / "out.json")
    found = sections(tmp_path / "out.json")["text of poems.csv"]
    assert (found["characters"], found["unknown"]) == (5, 1)
    assert any("and not their title, author; no template is applied" in message for message in caplog.messages)
    assert any(message.startswith("1 of 5 characters are not in the vocabulary") for message in caplog.messages)


def test_sections_stand_side_by_side_and_in_the_card_of_their_checkpoint(folder: Path, stores: list[str], tmp_path: Path) -> None:
    (folder / "README.md").write_text("# x\n\n<!-- evaluation --><!-- end of evaluation -->\n\n## Data\n", encoding="utf-8")
    evaluate(folder, *stores)
    evaluate(folder, *stores, "--memorization", "3", "--new-tokens", "5")
    evaluate(folder, *stores, "--dtype", "bf16")
    before = sections(folder / "evaluation.json")["held-out text"]
    evaluate(folder, *stores)
    found = sections(folder / "evaluation.json")
    assert sorted(found) == ["held-out text", "held-out text, bf16", "memorization"]
    assert found["held-out text"]["loss"] == before["loss"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.count("### held-out text\n") == card.count("### held-out text, bf16\n") == card.count("### memorization") == 1
    assert "Of checkpoint `step00000005`." in card
    assert card.endswith("## Data\n")
    renew_evaluation(folder, folder, "another")
    assert (folder / "README.md").read_text(encoding="utf-8").count("###") == 0, "figures of another checkpoint are no figures of this one"


def test_a_model_that_learnt_a_text_by_heart_is_told_from_one_that_did_not(folder: Path, store: Path, datasets: Datasets) -> None:
    from data.inspect import find_subject
    from inference.evaluation.continuation import Probe, _passages, continue_corpus
    from inference.evaluation.training_text import open_index
    from inference.generation.engine import load_engine

    subject = find_subject(store)
    probe = Probe(num_prefixes=6, prefix_tokens=12, new_tokens=12, batch_size=4)
    before = continue_corpus(load_engine(folder), subject, open_index(subject), probe)["by_split"]
    assert before["train"]["hit_share"] == 0

    # The very passages that will be asked for.
    streams = [stream for _, stream in subject.streams("train")]
    learn_by_heart(folder, [passage.tolist() for passage in _passages(streams, (datasets.tokenizer.eos_id,), probe)])
    after = continue_corpus(load_engine(folder), subject, open_index(subject), probe)["by_split"]
    assert after["train"]["hit_share"] == 1
    assert after["train"]["mean_longest_run"] > before["train"]["mean_longest_run"]
    assert after["valid"]["hit_share"] < 1


def test_texts_are_judged_without_their_prompts(folder: Path, stores: list[str], datasets: Datasets, tmp_path: Path) -> None:
    training = datasets.tokenizer.decode(datasets.train.sample(0).tolist()).strip("\ufffd").split("\n")[-1][:30]
    texts = [{"prompt": training, "text": "天地玄黄宇宙洪荒"}, {"prompt": "日月", "text": "盈昃" + training}]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in texts), encoding="utf-8")
    evaluate(folder, *stores, "--generated", file, "--min-span", "10", "--output", tmp_path / "out.json")
    found = sections(tmp_path / "out.json")["generated texts of texts.jsonl"]
    assert found["copied"]["longest_run"] == len(training)
    assert found["copied"]["copied_share"] == pytest.approx(len(training) / (8 + 2 + len(training)))
    assert found["longest_passages"][0]["text"] == 2


def test_generated_texts_and_questions_may_hold_line_separators(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"prompt": "", "text": "天地\u2028玄黄\x85宇宙"}\n{"text": "洪荒"}\n', encoding="utf-8")
    question = {"question": "天地\u2028？", "choices": ["玄", "黄"], "answer": 0}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [one.text for one in read_generated(tmp_path / "texts.jsonl")] == ["天地\u2028玄黄\x85宇宙", "洪荒"]
    check_questions(tmp_path / "questions.jsonl")


@pytest.mark.parametrize("line", ['{"text": 5}', '{"text": null}', '{"prompt": 1, "text": "天"}', '["天"]', "天"])
def test_a_line_without_a_text_is_refused_by_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "texts.jsonl").write_text(f'{{"prompt": null, "text": "地"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r'texts\.jsonl:3: is no object with "text"'):
        read_generated(tmp_path / "texts.jsonl")


def test_a_store_of_another_tokenizer_is_not_given_to_the_model(
    folder: Path, verse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = prepare(data_config(verse, tmp_path / "stores", tokenizer=TokenizerConfig(kind="characters")))
    for what in (["--held-out"], ["--memorization", "2"]):
        assert main([str(folder), *what, "--corpus", str(other)]) == 2
        assert "its tokenizer is not that of" in capsys.readouterr().err


def test_a_folder_that_takes_the_end_of_text_for_text_has_the_same_tokenizer(folder: Path, store: Path, tmp_path: Path) -> None:
    path = folder / "tokenizer.json"
    backend = json.loads(path.read_text(encoding="utf-8"))
    for token in backend["added_tokens"]:
        token["special"] = False
    path.write_text(json.dumps(backend), encoding="utf-8")
    evaluate(folder, "--held-out", "--corpus", store, "--output", tmp_path / "out.json")
    assert "held-out text" in sections(tmp_path / "out.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: no such folder."),
        (["FOLDER", "--batch-size", "0"], "--batch-size = 0; it must be 1 or more."),
        (["FOLDER", "--text", "gone.txt"], "gone.txt: no such file."),
        (["FOLDER", "--output", "gone/out.json"], "gone/out.json: cannot be written."),
        (["FOLDER", "--memorization", "2", "--prefix-tokens", "60"], "60 + 32 tokens do not fit the model's 64 positions."),
        (["FOLDER", "--corpus", "gone"], "gone: neither a token store"),
        (
            ["FOLDER", "--memorization", "2", "--by", "form"],
            "--by: has no effect on what is to be judged. Leave it out, or add --held-out.",
        ),
        (["FOLDER", "--memorization", "2", "--ngram-size", "5"], "--ngram-size: has no effect on what is to be judged. Leave"),
        (
            ["FOLDER", "--prefix-tokens", "5"],
            "--prefix-tokens: has no effect on what is to be judged. Leave it out, or add --memorization.",
        ),
    ],
)
def test_a_mistake_is_one_line(folder: Path, store: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    named = [str(folder) if word == "FOLDER" else word for word in arguments]
    named += [] if "--corpus" in named else ["--corpus", str(store)]
    assert main(named) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("inference.evaluate: ")
    assert message in said[-1]


def test_a_record_that_is_none_is_told_before_anything_is_scored(
    folder: Path, stores: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "evaluation.json").write_text('{"sections": ["x"]}', encoding="utf-8")
    assert main([str(folder), *stores]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert "evaluation.json: holds something else than sections of figures" in said.err.strip().splitlines()[-1]


def test_a_folder_that_cannot_be_written_is_judged_and_the_figures_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "poem.jsonl").write_text('{"text": "白日依山尽，黄河入海流。"}\n', encoding="utf-8")
    monkeypatch.setattr("os.access", lambda path, mode, **_: Path(path) != folder)  # As root, who runs tests, may write anywhere.
    command = [str(folder), "--text", str(tmp_path / "poem.jsonl")]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "### text of poem.jsonl" in said.out
    assert f"{folder}: cannot be written, so evaluation.json is not; --output FILE keeps the figures elsewhere" in said.err
    assert not (folder / "evaluation.json").exists()
    evaluate(*command, "--output", tmp_path / "mine.json")
    assert list(sections(tmp_path / "mine.json")) == ["text of poem.jsonl"]
    assert capsys.readouterr().err.endswith(f"written to {tmp_path / 'mine.json'}\n")


def test_the_output_replaces_neither_the_record_nor_what_is_judged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("天地玄黄", encoding="utf-8")
    for output in (folder / "evaluation.json", tmp_path / "." / "text.txt"):
        assert main([str(folder), "--text", str(text), "--output", str(output)]) == 2
        assert f"{output}: holds something else that this command needs." in capsys.readouterr().err
    assert text.read_text(encoding="utf-8") == "天地玄黄"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("x", 'rows = "x"'),
        ({"seq_length": "x"}, "rows.seq_length"),
        ({"seq_length": 0}, "of 1 or more"),
        ({"seq_length": 8, "row": 1}, "rows.row"),
    ],
)
def test_a_record_of_rows_that_is_none_is_told(folder: Path, stores: list[str], capsys, rows: Any, said: str) -> None:
    (folder / "export.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    assert main([str(folder), *stores]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{folder / 'export.json'}: " in line
    assert said in line


def test_a_folder_of_another_origin_is_scored_in_rows_of_its_positions(folder: Path, stores: list[str], capsys, tmp_path: Path) -> None:
    (folder / "export.json").unlink()
    evaluate(folder, *stores)
    assert f"rows of {SEQ_LENGTH} tokens are scored" in capsys.readouterr().err
    assert sections(folder / "evaluation.json")["held-out text"]["checkpoint"] is None
    assert main([str(folder)]) == 2
    said = (
        f"inference.evaluate: {folder}: does not say which text its model was trained on. inference.evaluate is told with --corpus STORE.\n"
    )
    assert capsys.readouterr().err == said
    shutil.rmtree(folder)
