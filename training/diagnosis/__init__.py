"""What is wrong with a machine or a cluster, before a job burns hours on it, and which hosts a start has lost."""
