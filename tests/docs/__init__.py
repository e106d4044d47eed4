"""What README and pages show is run, or checked where it cannot be run here."""
