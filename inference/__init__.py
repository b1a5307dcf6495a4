"""From a run to text: reads checkpoints, writes Hugging Face folders, generates. Shares with `training` what knows of checkpoints."""
