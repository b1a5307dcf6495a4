"""From a command to ranks: how many there are, who each of them is, their rendezvous, and the process group."""
