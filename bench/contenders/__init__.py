"""Programs that bring in mail, side by side, each with the same interface."""
