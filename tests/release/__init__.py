"""What is checked of a release before it is one: see ``docs/releasing.md``."""
