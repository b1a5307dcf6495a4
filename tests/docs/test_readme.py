"""The two READMEs say the same, and every page's commands, links and figures hold."""

import json
import re
import shlex
from pathlib import Path

import pytest

from ds_configs import load
from tests import ROOT
from tests.docs.pages import CHINESE, ENGLISH, PAGES, blocks, commands, named, sections
from training.config import RunConfig, resolve

READMES = [ENGLISH, CHINESE]
# What a person makes, downloads or is asked to fill in; everything else that a page names is in the checkout.
MADE = ("runs", "data/downloads", "data/stores", ".venv", "hostfiles/job", "exported", "my_novel.txt")
PROGRAMS = r"(?:python3?|deepspeed|pip|pytest|torchrun|tensorboard|ruff|mypy|pre-commit)"
# A program of the environment at the beginning of a command, variables before it aside. The system's Python may make the environment.
BARE = re.compile(rf"(?:^|[|;&(]\s*)(?:[A-Z_]+=\S+\s+)*(?!python3? training/make_venv\.py){PROGRAMS}\s+\S")
ACTIVATION = "source .venv/bin/activate"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_both_readmes_have_the_same_commands():
    assert commands(read(CHINESE)) == commands(read(ENGLISH))
    assert len(commands(read(ENGLISH))) > 10


def test_both_readmes_have_the_same_configurations_but_for_the_words_for_people():
    english, chinese = ([json.loads(block) for block in blocks(read(path), "json")] for path in READMES)
    for example in (*english, *chinese):
        assert example["run"].pop("description")
    assert english == chinese != []


def test_both_readmes_name_the_same_files():
    english, chinese = (links(path) for path in READMES)
    assert english - {"README.zh-CN.md"} == chinese - {"README.md"}


def test_both_readmes_have_the_same_tables():
    english, chinese = ([line.count("|") for line in read(path).splitlines() if line.startswith("|")] for path in READMES)
    assert english == chinese


def links(page: Path) -> set[str]:
    """Targets of a page's links that are files, without anchors."""
    return {target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", read(page)) if not target.startswith(("#", "http"))}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_to_a_file(page):
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", READMES, ids=named)
def test_links_within_a_readme_lead_to_a_heading(page):
    headings = {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in re.findall(r"^#+ .*", read(page), re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", read(page))) <= headings


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_a_page_names_exists(page):
    tops = "|".join(sorted(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")))
    words = set(re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./*-]*[\w*/]", without_code(read(page)) + "\n".join(commands(read(page)))))
    words |= set(re.findall(r"`(requirements[\w-]*\.txt|[\w-]+\.sh|pyproject\.toml|Makefile)`", read(page)))
    named_files = {word for word in words if not word.startswith(MADE)}
    assert [word for word in sorted(named_files) if not found(page, word)] == []


def found(page: Path, word: str) -> bool:
    """Pages in a folder may name their neighbours; NAME, CONFIG and F stand for a name."""
    if re.search(r"\b(?:NAME|FILE|CONFIG|FOLDER)\b", word):
        return True
    return any(list(base.glob(word.rstrip("/"))) for base in (ROOT, page.parent))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_command_needs_an_environment_that_is_not_active(page):
    wrong = []
    for section in sections(read(page)):
        said = commands(section) + re.findall(r"`([^`\n]+)`", without_code(section))
        active = [said.index(line) for line in said if line.startswith(ACTIVATION)]
        wrong += [line for line in said[: active[0] if active else None] if BARE.search(line)]
    assert wrong == [], f'write .venv/bin/..., or "{ACTIVATION}" before it in the same section'


def test_a_bare_command_is_told_from_one_that_works():
    for line in ("python -m data.prepare", "deepspeed --hostfile F run_pretrain.sh", "A=1 pip install x", "cd x && pytest tests"):
        assert BARE.search(line), line
    for line in (
        ".venv/bin/python -m x",
        "A=1 ./run_pretrain.sh",
        "python3 training/make_venv.py requirements.txt",
        "cat python.txt",
    ):
        assert not BARE.search(line), line


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_modules_and_scripts_that_commands_start_exist(page):
    for command in commands(read(page)):
        for name in re.findall(r"-m(?:odule)? ((?:data|model|training|inference|ds_configs)[\w.]*)", command):
            module = ROOT / name.replace(".", "/")
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), command


def started(page: Path) -> list[RunConfig]:
    """The runs that a page's run_pretrain.sh commands start, resolved as a person's machine does; placeholders left out."""
    runs = []
    for command in commands(read(page)):
        words = shlex.split(command)
        script = next((index for index, word in enumerate(words) if word.endswith("run_pretrain.sh")), None)
        if script is None or re.search(r"\b(?:CONFIG|FILE)\b", command):
            continue
        given = words[script + 1 :]
        default = "ds_configs/hongloumeng_500m.json" if "--hostfile" in words else "ds_configs/quickstart.json"
        path = given.pop(0) if given and given[0].endswith(".json") else default
        runs.append(resolve(load(path, given)))
    return runs


@pytest.mark.parametrize("page", [ENGLISH, ROOT / "docs/gpu.md", ROOT / "docs/reference_run.md", ROOT / "hostfiles/README.md"], ids=named)
def test_runs_that_a_page_starts_are_good_configurations(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert started(page)


def test_the_one_card_run_of_the_gpu_page_is_one_process(monkeypatch):
    monkeypatch.chdir(ROOT)
    (run,) = (run for run in started(ROOT / "docs/gpu.md") if run.run.name == "one_card")
    assert run.batch.world_size == 1


@pytest.mark.parametrize("page", READMES, ids=named)
def test_the_table_of_configurations_holds_what_check_says(page, monkeypatch):
    """Memory within a quarter or 0.01 GiB: the table is for choosing a machine, and small changes of the estimate are no news."""
    from model.flops import layer_work, stage_table
    from model.partition import balance

    monkeypatch.chdir(ROOT)
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", read(page), re.MULTILINE))
    assert {path.stem for path in (ROOT / "ds_configs").glob("*.json")} <= rows.keys()
    for path in (ROOT / "ds_configs").glob("*.json"):
        _, processes, memory, *_ = rows[path.stem].split("|")
        run = resolve(load(str(path.relative_to(ROOT)), ["bf16.enabled=true"]))
        parts = balance(layer_work(run.model, run.data.seq_length), run.batch.stages)
        table = stage_table(run.model, parts, run.workload)
        mebibytes = sum(int(row.split()[-1].replace(",", "")) for row in table.splitlines() if re.match(r"\s*\d+\s+\d+-\d+ ", row))
        shown = re.search(r"([\d.]+) GiB", memory)
        assert int(processes) == run.batch.world_size, path.stem
        assert shown, path.stem
        assert float(shown[1]) == pytest.approx(mebibytes / 1024, rel=0.25, abs=0.01), path.stem


@pytest.mark.parametrize("page", READMES, ids=named)
def test_every_tag_that_a_run_writes_is_explained(page):
    source = "\n".join(read(ROOT / "training" / name) for name in ("run/meter.py", "run/loop.py", "health/stage_clock.py"))
    tags = {re.sub(r"\{[^}]*\}", "N", tag) for tag in re.findall(r"[\"']((?:train|valid|optim|perf|memory|pipeline)/[\w{}]+)[\"']", source)}
    tags.discard("valid/N")  # The scores of a mixture's sources, whose two tags stand in one row.
    tags |= {f"valid/{name}" for name in re.findall(r"\{tag\}/(\w+)", source)}
    assert "`valid/SOURCE/loss`" in read(page)
    explained = set(re.findall(r"^\| `(\w+/\w+)` \|", read(page), re.MULTILINE))
    assert tags == explained


def test_the_chinese_readme_is_written_in_chinese():
    """Every paragraph outside code has Han characters: nothing was left untranslated."""
    paragraphs = [part for part in re.split(r"\n\s*\n", without_code(read(CHINESE))) if not part.startswith(("<!--", "#"))]
    assert [part for part in paragraphs if part.strip() and not re.search(r"[\u4e00-\u9fff]", part)] == []
