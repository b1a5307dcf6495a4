"""What is done to one text after the other: rules, and the search for duplicates."""
