"""What there is to compute on here, and how fast it is."""
