"""What a run will cost before it is started: schedule, time, memory, traffic, energy."""
