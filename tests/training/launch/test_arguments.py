"""What is made of the words behind `./run_pretrain.sh`."""

import pytest

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
