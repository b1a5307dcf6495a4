"""The preparation on datatrove's executors makes what one process makes, and says why a worker failed."""

import json
import os
import random
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data import at_scale
from data.at_scale import Cluster, main
from data.cleaning_config import DeduplicateConfig, NearConfig
from data.config import DataConfig, TokenizerConfig, ValidationConfig
from data.corpora import sources
from data.documents import DataError
from data.prepare import prepare
from data.steps import clean
from data.steps.tasks import Task, run
from ds_configs.atomic_files import with_ending
from tests.data.stores import contents

LETTERS = "列位看官你道此书从何而来说起根由虽近荒唐细按则深有趣味原来女娲氏炼石补天之时于大荒山无稽崖炼成顽石，。"


def write_corpus(folder: Path, num_files=4):
    """Files of a little more than a MiB, the smallest size of a part."""
    folder.mkdir(parents=True)
    for file in range(num_files):
        draw = random.Random(file)
        texts = ["".join(draw.choices(LETTERS, k=9000)) for _ in range(40)] + ["短"]
        (folder / f"{file}.jsonl").write_text(
            "\n".join(json.dumps({"content": text}, ensure_ascii=False) for text in texts), encoding="utf-8"
        )
    return folder


def tasks(settings, folder: Path):
    """Reading and cleaning, as the preparation has them."""
    parts = sources.parts(settings, folder)
    return [Task(folder / f"{index:05d}", clean.clean_part, (settings, part)) for index, part in enumerate(parts)]


@pytest.fixture
def parted(tmp_path):
    """The configuration of a corpus in several parts."""
    return DataConfig(
        seq_length=16,
        path=str(write_corpus(tmp_path / "网页")),
        tokenizer=TokenizerConfig(kind="byte_bpe", vocab_size=300),
        validation=ValidationConfig(ratio=0.1),
        deduplicate=DeduplicateConfig(near=NearConfig()),
        shuffle=True,
        shard_mib=1,
        directory=str(tmp_path / "stores"),
    )


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a script on PATH in the place of one of Slurm's commands, and has it asked without a pause."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(at_scale, "_POLL_SECONDS", 0.01)

    def put(name, text):
        path = tmp_path / "bin" / name
        path.write_text(text, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


def test_what_is_done_is_not_done_again_and_enough_is_enough(parted, tmp_path):
    cluster = Cluster(executor="local", workers=1, logs=tmp_path / "logs")
    every = tasks(parted, tmp_path / "work")
    run(every[:1], 1)
    every[0].result_path.write_text('{"documents": -1}', encoding="utf-8")

    results = cluster.run(every, 2, lambda results: len(results) == 2)

    assert results[0] == {"documents": -1}
    assert len(results) == 2
    assert not every[3].result_path.exists()


@pytest.mark.processes
def test_the_reason_of_a_failed_task_comes_back_from_the_worker(parted, tmp_path):
    every = [Task(tmp_path / "work" / str(index), clean.drop_copies, (parted, [tmp_path / "cut"])) for index in range(2)]
    with_ending(tmp_path / "cut", clean.SKETCHES).write_bytes(b"123")
    cluster = Cluster(executor="local", workers=2, logs=tmp_path / "logs")

    with pytest.raises(DataError, match="no whole number of sketches"):
        cluster.run(every, 2)


@pytest.mark.processes
def test_a_worker_that_dies_for_another_reason_is_reported_with_the_place_of_its_log(parted, tmp_path):
    every = [Task(tmp_path / "work" / str(index), clean.drop_copies, (parted, [tmp_path / "missing"])) for index in range(2)]
    cluster = Cluster(executor="local", workers=2, logs=tmp_path / "logs")

    with pytest.raises(DataError, match=r"2 of 2 tasks .* failed \(FileNotFoundError.*logs"):
        cluster.run(every, 2)


def test_nothing_is_submitted_where_the_queue_cannot_be_asked(parted, tmp_path, install, monkeypatch):
    install("sbatch", f"#!/bin/bash\ntouch {tmp_path}/submitted\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    cluster = Cluster(executor="slurm", workers=1, logs=tmp_path / "logs", slurm={"partition": "work", "time": "01:00:00"})
    with pytest.raises(DataError, match="squeue is not on PATH"):
        cluster.run(tasks(parted, tmp_path / "there"), 2)
    assert not (tmp_path / "submitted").exists()


@pytest.mark.processes
def test_slurm_gets_an_array_of_jobs_and_is_waited_for(parted, tmp_path, install):
    # sbatch that runs the array at once, in the way Slurm does it, and no queue: what is in the script is what is tested.
    programs = {
        "sbatch": f"""#!{sys.executable}
import os, re, subprocess, sys
script = open(sys.argv[-1], encoding="utf-8").read()
match = re.search("--array=0-([0-9]+)", script)
exports = dict(pair.split("=") for pair in sys.argv[1].removeprefix("--export=ALL,").split(",") if "=" in pair)
if "merge_stats" not in script:
    for index in range(int(match[1]) + 1):
        names = {{"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "7", "SLURM_NODELIST": "node1"}}
        subprocess.run(["bash", sys.argv[-1]], env={{**os.environ, **exports, **names}}, check=True, stdout=sys.stderr)
print("Submitted batch job 7")
""",
        "srun": '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n',
        "squeue": "#!/bin/bash\nexit 1\n",
        "scontrol": "#!/bin/bash\necho node1\n",
    }
    for name, text in programs.items():
        install(name, text)
    cluster = Cluster(executor="slurm", workers=1, logs=tmp_path / "logs", slurm={"partition": "work", "time": "01:00:00"})

    there = cluster.run(tasks(parted, tmp_path / "there"), 2)

    assert there == run(tasks(parted, tmp_path / "here"), 1)
    (script,) = (tmp_path / "logs").rglob("launch_script.slurm")
    assert "--partition=work" in script.read_text(encoding="utf-8")


@pytest.fixture
def squeue(tmp_path, install):
    """Puts a script in squeue's place; it is told how often it was asked before as $asked."""

    def put(script):
        count = tmp_path / "asked"
        install("squeue", f"#!/bin/bash\nasked=$(cat {count} 2>/dev/null || echo 0); echo $((asked + 1)) > {count}\n{script}\n")
        return count

    return put


def test_a_failed_squeue_does_not_mean_that_the_array_is_gone(squeue, tmp_path, caplog):
    task = Task(tmp_path / "one", clean.clean_part, ())
    count = squeue(
        f"""if [[ $asked -lt 3 ]]; then echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1; fi
        echo '{{}}' > {task.result_path}; echo running"""
    )

    at_scale._wait("7", [task])

    assert task.result_path.is_file()
    assert int(count.read_text()) == 4
    assert "squeue failed (slurm_load_jobs error: Socket timed out" in caplog.text


@pytest.mark.parametrize("script", ["exit 0", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'])
def test_an_array_that_slurm_has_forgotten_is_not_waited_for(squeue, script, tmp_path):
    count = squeue(script)

    at_scale._wait("7", [Task(tmp_path / "one", clean.clean_part, ())])

    assert int(count.read_text()) == 1


def test_paths_that_a_slurm_script_would_tear_apart_are_refused_before_anything_is_submitted(parted, tmp_path):
    cluster = Cluster(executor="slurm", workers=1, logs=tmp_path / "my logs", slurm={"partition": "work", "time": "01:00:00"})

    with pytest.raises(DataError, match="datatrove writes this path unquoted into its Slurm scripts"):
        cluster.run(tasks(parted, tmp_path / "there"), 2)


@pytest.mark.processes
@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_the_command_makes_the_store_that_one_process_makes(executor, parted, tmp_path, capsys):
    here = prepare(replace(parted, directory=str(tmp_path / "here")))
    section = {
        "path": parted.path, "seq_length": 16, "tokenizer": {"kind": "byte_bpe", "vocab_size": 300}, "validation": {"ratio": 0.1},
        "deduplicate": {"near": {}}, "shuffle": True, "shard_mib": 1, "directory": str(tmp_path / "there"),
    }  # fmt: skip
    (tmp_path / "网页.json").write_text(json.dumps({"data": section}), encoding="utf-8")
    try:
        code = main([str(tmp_path / "网页.json"), "--executor", executor, "--workers", "2", "--memory-gb", "0.5"])
    finally:
        if executor == "ray":
            import ray

            ray.shutdown()

    there = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert code == 0
    assert there.parent == tmp_path / "there"
    assert contents(there) == contents(here)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "--workers 0: it must be"),
        (["--workers", "1", "--memory-gb", "0"], "--memory-gb 0: it must"),
        (["--workers", "1", "--partition", "work"], "--partition and --time are of --executor slurm"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["a.json", "--executor", "local", *options])
    assert message in capsys.readouterr().err


def test_ctrl_c_leaves_no_traceback(parted, tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.prepare.prepare", stopped)
    section = {"path": parted.path, "seq_length": 16, "tokenizer": {"kind": "characters"}}
    (tmp_path / "a.json").write_text(json.dumps({"data": section}), encoding="utf-8")

    assert main([str(tmp_path / "a.json"), "--executor", "local", "--workers", "2"]) == 130
    assert "start again" in capsys.readouterr().err


def test_a_mistake_in_the_configuration_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps({"data": {"path": "nowhere", "seq_lenght": 16}}), encoding="utf-8")

    assert main([str(tmp_path / "a.json"), "--executor", "local", "--workers", "2"]) == 2
    assert 'Did you mean "seq_length"?' in capsys.readouterr().err
