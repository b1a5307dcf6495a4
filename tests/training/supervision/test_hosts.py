"""Which hosts a supervised run is started on: hostfiles with spares, and what is left when hosts are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.supervision.hosts import Host, Pool, choose, on, on_each, options_for, read_pool, write_hostfile

HOSTFILE = """# the machine room on the left
a slots=6
b slots=6   # under the window

# spare: c slots=6
"""


def pool_of(text: str, folder: Path) -> Pool:
    path = folder / "hostfile"
    path.write_text(text, encoding="utf-8")
    return read_pool(path)


def test_spares_are_comments_that_name_a_host(tmp_path):
    assert pool_of(HOSTFILE, tmp_path) == Pool((Host("a", 6), Host("b", 6)), (Host("c", 6),))


def test_deepspeed_reads_the_hosts_and_no_spare(tmp_path):
    from deepspeed.launcher.runner import fetch_hostfile

    (tmp_path / "hostfile").write_text(HOSTFILE.replace("   # under the window", ""), encoding="utf-8")
    assert dict(fetch_hostfile(str(tmp_path / "hostfile"))) == {"a": 6, "b": 6}


@pytest.mark.parametrize("name", ["32nodes", "2nodes", "local"])
def test_the_shipped_hostfiles_can_be_supervised(root, name):
    assert read_pool(root / "hostfiles" / name).wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no hosts"),
        ("a slots=6\na slots=6\n", "a twice"),
        ("a slots=6\n# spare: a slots=6\n", "a twice"),
        ("a 6\n", ':1: "a 6" is not a host. Write "HOST slots=N"'),
        ("a slots=6\nb slots=0\n", ':2: "b slots=0" is not a host. Write "HOST slots=N", N being 1 or more.'),
        ("\ufeffa slots=6\n", ':1: "\\ufeffa slots=6" is not a host.'),
        ("-oProxyCommand=x slots=6\n", "is not a host."),
        ("a slots=6\n# spare b slots=6: later\n", ':2: "# spare b slots=6: later" is no spare host. Write "# spare: HOST slots=N"'),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, text, said):
    with pytest.raises(ValueError, match="hostfile") as error:
        pool_of(text, tmp_path)
    assert said in str(error.value)


def test_addresses_and_users_are_names_of_hosts(tmp_path):
    names = ["10.0.0.1", "fd00::2", "::1", "me@node1.cluster", "x1000c0s0b0n0-hsn0", "node_1"]
    assert [host.name for host in pool_of("".join(f"{name}\tslots=2\r\n" for name in names), tmp_path).wanted] == names


def test_a_hostfile_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "hostfile").write_bytes(b"a slots=6 # caf\xe9\n")
    with pytest.raises(ValueError, match=r"hostfile: byte 15 is not UTF-8"):
        read_pool(tmp_path / "hostfile")


@pytest.mark.parametrize(
    ("name", "label"), [("a", "a"), ("a.cluster.local", "a"), ("me@a.cluster", "a"), ("10.0.0.1", "10.0.0.1"), ("fd00::2", "fd00::2")]
)
def test_a_host_is_known_by_what_pdsh_calls_it(name, label):
    assert Host(name, 1).is_called(label)
    assert not Host(name, 1).is_called("b")
    assert not Host("10.0.0.10", 1).is_called("10.0.0.1")


def test_a_hostfile_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_pool(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("missing", "divides", "chosen"),
    [
        ("", 12, "ab"),
        ("b", 12, "ac"),  # The spare stands in.
        ("bc", 6, "a"),  # Fewer replicas.
        ("abc", 6, ""),
        ("", 6, "a"),  # Two hosts, but the batch cannot be divided over both.
    ],
)
def test_spares_stand_in_and_otherwise_fewer_hosts_go_on(tmp_path, missing, divides, chosen):
    pool = pool_of(HOSTFILE, tmp_path)

    found = choose(pool, lambda host: host.name not in missing, lambda ranks: divides % ranks == 0)

    assert "".join(host.name for host in found) == chosen
    if found:
        write_hostfile(tmp_path / "next", found)
        assert read_pool(tmp_path / "next").wanted == tuple(found)


def test_deepspeed_is_made_to_go_to_a_single_host_that_is_not_this_one():
    assert options_for([Host("elsewhere", 2)], "hosts") == ["--hostfile", "hosts", "--force_multi"]
    assert options_for([Host("localhost", 2)], "hosts") == options_for([Host("a", 2), Host("b", 2)], "hosts") == ["--hostfile", "hosts"]


def test_commands_run_here_without_ssh_and_elsewhere_in_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert on_each([Host("localhost", 1)], ["pwd"]) == {"localhost": str(tmp_path)}
    assert on_each([Host("localhost", 1)], ["false"]) == {"localhost": None}
    *_, option, port, host, remote = on(Host("elsewhere", 1), ["echo", "two words"], ssh_port="2222")
    assert (option, port, host, remote) == ("-p", "2222", "elsewhere", f"cd {tmp_path} && echo 'two words'")
