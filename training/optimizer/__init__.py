"""The optimizer: gradients are clipped and applied to fp32 masters, Muon, and which parameters are whose."""
