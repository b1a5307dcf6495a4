"""Saving, publishing, verifying, choosing and loading checkpoints, on the same or another topology."""
