"""The optimizer: gradients are reduced, clipped and applied to fp32 masters, Muon, and which parameters are whose."""
