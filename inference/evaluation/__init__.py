"""How good is it, and how much of it is copied: held-out text, memorisation, verse, benchmarks."""
