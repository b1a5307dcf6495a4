"""Training: from a resolved configuration to a finished, resumable run."""
