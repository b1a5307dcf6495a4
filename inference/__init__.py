"""From a run to text: reads checkpoints, writes Hugging Face folders, generates. Shares a folder on disk with `training`, and no code."""
