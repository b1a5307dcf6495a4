"""What is made of the words behind `./run_pretrain.sh`."""

import os
import shutil
import sys

import pytest

from tests import processes
from training.launch.arguments import check_quotes, parse

TWO_HOSTS = {"CROSS_SIZE": "2"}  # DeepSpeed's launcher sets it to the number of hosts; test_two_hosts sees it there.


def test_the_configuration_may_be_left_out_and_the_launchers_rank_is_no_override():
    assert parse(["--local_rank=1", "a.json", "training.steps=3"], "default.json") == ("a.json", ["training.steps=3"])
    assert parse(["training.steps=3"], "default.json") == ("default.json", ["training.steps=3"])
    assert parse(["--local_rank", "1"], "default.json") == ("default.json", [])
    # An override of a path that ends in .json is still an override.
    assert parse(["data.path=verse.json"], "default.json") == ("default.json", ["data.path=verse.json"])


def test_an_option_that_does_not_exist_goes_on_to_where_one_line_says_so():
    assert parse(["a.json", "--epochs=3", "x.y=1"], "default.json") == ("a.json", ["--epochs=3", "x.y=1"])


@pytest.mark.parametrize("override", ["data.clean=[strip]", "data.validation={ratio:0.1}", 'run.description="two'])
def test_quotes_that_the_remote_shell_took_are_noticed(override):
    with pytest.raises(ValueError, match=r"is no JSON as it arrived here: .* Put a space behind the equals sign"):
        check_quotes([override], TWO_HOSTS)
    check_quotes([override], {"CROSS_SIZE": "1"})  # No remote shell: a text may begin as it likes.
    check_quotes([override], {})


def test_what_arrived_whole_passes():
    check_quotes(["a.b= [1, 2]", "a.b=[0.9,0.95]", 'a.b= "x"', "a.b=two words", "a.b=null", "a.b="], TWO_HOSTS)


@pytest.mark.parametrize(
    ("start", "words", "became", "said"),
    [
        ("elsewhere", ["my.json", "training.steps=1"], ["{elsewhere}/my.json", "training.steps=1"], True),
        ("elsewhere", ["ds_configs/quickstart.json"], ["ds_configs/quickstart.json"], True),
        ("elsewhere", [], [], True),
        ("elsewhere", ["{elsewhere}/my.json"], ["{elsewhere}/my.json"], True),
        ("checkout", ["own.json"], ["own.json"], False),
    ],
)
def test_a_configuration_is_found_where_it_is_typed(start, words, became, said, root, tmp_path):
    (tmp_path / "checkout/training").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(root / "run_pretrain.sh", tmp_path / "checkout")
    for path in ("checkout/own.json", "elsewhere/my.json", "elsewhere/own.json"):
        (tmp_path / path).touch()
    program = "import os, sys; print(os.getcwd(), *sys.argv[sys.argv.index('run_pretrain.sh') + 1:])"
    (tmp_path / "checkout/training/make_venv.py").write_text(program, encoding="utf-8")
    words, became = ([word.format(elsewhere=tmp_path / "elsewhere") for word in some] for some in (words, became))

    environment = {**os.environ, "PYTHON": sys.executable}
    done = processes.run([str(tmp_path / "checkout/run_pretrain.sh"), *words], cwd=tmp_path / start, env=environment)

    assert done.stdout.split() == [str(tmp_path / "checkout"), *became]
    assert (f"run_pretrain.sh: works in {tmp_path}/checkout: " in done.stderr) == said
