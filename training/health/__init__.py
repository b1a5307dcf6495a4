"""What a run watches about itself while it trains: who is slow, and whether the replicas are still the same."""
