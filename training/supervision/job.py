"""A command that starts a run, taken apart and put together again for the hosts that are left."""

import json
from collections.abc import Sequence
from pathlib import Path

import ds_configs
from training.batch_size import KEYS, can_split
from training.config import resolve
from training.launch import local
from training.launch.arguments import parse
from training.pretrain import DEFAULT_CONFIG
from training.supervision.hosts import Host, options_for, read_pool, write_hostfile
from training.supervision.leftovers import SCRIPT

SPLIT = ("--hostfile=", "--ssh_port=", "--master_addr=")
# DeepSpeed installs its launcher under three names.
DEEPSPEED = ("deepspeed", "deepspeed.pt", "ds", "deepspeed.launcher.runner")
# They choose among the hosts of the hostfile, as the supervisor does.
CHOOSING = ("--include", "-i", "--exclude", "-e", "--num_nodes", "--num_gpus", "--num_accelerators")


class Job:
    """A command that starts a run, taken apart.

    Raises:
        ValueError: If it starts no run, or its configuration or hostfile is wrong.
    """

    def __init__(self, command: Sequence[str]) -> None:
        # "--hostfile=FILE" becomes two words, of which the second is replaced later.
        self._command = [part for word in command for part in (word.split("=", 1) if word.startswith(SPLIT) else [word])]
        place = next((index for index, word in enumerate(self._command) if Path(word).name == SCRIPT), None)
        if place is None:
            raise ValueError(f"{' '.join(command)}: starts no {SCRIPT}. Give the whole command behind --.")
        launcher, self.words = self._command[:place], self._command[place + 1 :]
        # The same options of mpiexec and srun name files and lists of other formats.
        self.by_deepspeed = any(Path(word).name in DEEPSPEED for word in launcher)
        self._hostfile = _behind(launcher, ("--hostfile", "-H")) if self.by_deepspeed else None
        choosing = [word for word in launcher if word.partition("=")[0] in CHOOSING]
        if self._hostfile is not None and choosing:
            raise ValueError(f"{choosing[0]}: the supervisor chooses hosts itself. Leave it out, and write a hostfile of those you mean.")
        self.pool = None if self._hostfile is None else read_pool(Path(self._command[self._hostfile]))
        port = _behind(launcher, ("--ssh_port",))
        self.ssh_port = None if port is None else self._command[port]
        self._address = _behind(launcher, ("--master_addr",))
        path, overrides = parse(self.words, local.DEFAULT_CONFIG if launcher in ([], ["bash"]) else DEFAULT_CONFIG)
        if path not in self.words:
            # Typed, it tells the processes of this run from those of others.
            self.words = [path, *self.words]
            self._command.insert(place + 1, path)
        self.config = resolve(ds_configs.read(path, overrides), self.pool.slots if self.pool else None)

    def fits(self, ranks: int) -> bool:
        """Whether the global batch can be divided over this many ranks."""
        return can_split({"pipeline": {"stages": self.config.batch.stages}, **self._kept_batch()}, ranks)

    def _kept_batch(self) -> dict[str, int | None]:
        """The batch keys with which any number of ranks keeps the global batch."""
        return dict(zip(KEYS, (self.config.batch.train_batch_size, self.config.batch.micro_batch, None), strict=True))

    def command_on(self, hosts: Sequence[Host], hostfile: Path) -> list[str]:
        """The command for these hosts; with fewer or more ranks than the hostfile says, the global batch is kept by accumulation.

        Raises:
            ValueError: If it names an address for the ranks to meet at that belongs to a host that is not among these.
        """
        if self.pool is None or self._hostfile is None:
            return self._command
        words = list(self._command)
        if self._address is not None and hosts[0] != self.pool.wanted[0]:
            if words[self._address] not in [host.name for host in self.pool.all]:
                raise ValueError(
                    f"--master_addr {words[self._address]} was for {self.pool.wanted[0].name}, which is left out. "
                    f"Give an address of {hosts[0].name}, and put that host first in the hostfile."
                )
            words[self._address] = hosts[0].name
        write_hostfile(hostfile, hosts)
        command = [*words[: self._hostfile - 1], *options_for(hosts, hostfile), *words[self._hostfile + 1 :]]
        if sum(host.slots for host in hosts) != self.pool.slots:
            command += [f"{key}={json.dumps(value)}" for key, value in self._kept_batch().items()]
        return command


def _behind(words: Sequence[str], options: Sequence[str]) -> int | None:
    """The place of the word behind the first of these options."""
    return next((index + 1 for index, word in enumerate(words) if word in options), None)
