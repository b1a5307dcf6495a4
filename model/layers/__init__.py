"""The layers of the list."""
