"""From an open store to batches. Nothing here reads raw files or cleans, and nothing it imports does."""
