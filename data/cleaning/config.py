"""The `deduplicate` section of a configuration. Apart from the code that it steers, so that checking a file needs no numpy."""

from dataclasses import dataclass

from ds_configs.errors import FieldError


@dataclass(frozen=True, kw_only=True)
class NearConfig:
    """When two texts are nearly the same.

    Texts of similarity s (shared windows over all windows) are compared at all with probability 1 - (1 - s**rows)**bands.
    """

    ngram: int = 3
    """Length of the windows in characters."""
    bands: int = 42
    rows: int = 3
    min_similarity: float = 0.35
    """Estimated similarity from which on the later text is dropped."""

    def __post_init__(self) -> None:
        for name, lowest, highest in (("ngram", 1, 50), ("bands", 1, 500), ("rows", 1, 32)):
            if not lowest <= getattr(self, name) <= highest:
                raise FieldError(name, f" = {getattr(self, name)}; it must be between {lowest} and {highest}.")
        if not 0 < self.min_similarity <= 1:
            raise FieldError("min_similarity", f" = {self.min_similarity}; it must be above 0 and at most 1.")

    @property
    def num_hashes(self) -> int:
        """Length of a signature."""
        return self.bands * self.rows


@dataclass(frozen=True, kw_only=True)
class DeduplicateConfig:
    """The `deduplicate` section: which kinds of duplicates are removed."""

    exact: bool = True
    near: NearConfig | None = None

    @property
    def bytes_per_document(self) -> int:
        """Size of a sketch."""
        return 16 + (self.near.bands * 8 + self.near.num_hashes * 2 if self.near else 0)
