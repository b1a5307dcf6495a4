"""A tokenizer is a folder: trained here or taken over, and the fast ways to its ids."""
