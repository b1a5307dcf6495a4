"""What keeps a run going without a person: which hosts to start on, and what an earlier start has left behind."""
