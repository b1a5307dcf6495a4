"""From prompts to text: the engine, settings, prompts, and text that streams."""
