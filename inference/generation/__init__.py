"""From prompts to text: the engine, settings, prompts, sampling, and text that streams."""
