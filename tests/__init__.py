"""The tests. A package, so that no other package's `tests` that is installed beside takes its place."""
