"""pip for parallel builds: many pip commands on one Python environment at once, each of them all or nothing."""

__version__ = "0.1.0"
