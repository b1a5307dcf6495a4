"""The run itself: engine, loop, evaluation, samples, and what it does when a signal or a failure comes."""
