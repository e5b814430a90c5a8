"""`asmtp demo`."""
