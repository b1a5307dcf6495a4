"""Which documents a configuration means: corpora known by name, files, chapters, poems, a made-up task."""
