"""From a command to ranks: the environment, who each rank is, their rendezvous, and the process group."""
