"""Numbered schema changes: expand first, contract one release later."""
