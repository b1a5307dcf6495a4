"""The transformer: one layer list, from which a pipeline and a plain model are built."""
