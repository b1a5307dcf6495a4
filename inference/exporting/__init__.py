"""From checkpoints to a Hugging Face folder and its model card."""
