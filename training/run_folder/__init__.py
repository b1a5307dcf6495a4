"""What a run writes about itself, and whether a start may go on with what it finds there."""
