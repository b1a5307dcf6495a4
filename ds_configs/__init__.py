"""Every run's configuration, and the small package that reads them.

One JSON file is one run. `load` reads it with everything it inherits, applies overrides and checks every key; `build_section` makes a
checked dataclass of one section. Keys and rules are in README.md beside this file. Only the standard library is imported.
"""

from ds_configs.errors import ConfigError
from ds_configs.loader import LoadedConfig, load, read
from ds_configs.typed import build_section

__all__ = ["ConfigError", "LoadedConfig", "build_section", "load", "read"]
