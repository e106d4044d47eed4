"""The way from an earlier version to this one: ``make upgrade-check FROM=<ref>``."""
