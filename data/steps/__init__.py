"""The steps of a preparation, each a list of tasks that a kill cannot harm."""
