"""What a run watches about itself: whether it still moves, who is slow, whether the replicas are the same and the loss is sound."""
