"""The token store on disk: its shards, its manifest, its identity, and how it is found again."""
