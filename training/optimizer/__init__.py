"""The optimizer: fp32 masters shared out over replicas, Muon, and which parameters are whose."""
