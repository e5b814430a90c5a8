"""SASL mechanisms, and which of them are tried."""
