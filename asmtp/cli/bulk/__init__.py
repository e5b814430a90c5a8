"""`asmtp bulk`."""
