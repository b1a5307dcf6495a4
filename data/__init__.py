"""From text as it is found to rows of token ids: read, clean, deduplicate, split, tokenize, store, batch."""
