"""From a command to ranks: how many there are, who each of them is, their rendezvous, the process group, and how they are ended."""
