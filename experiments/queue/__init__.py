"""Runs many experiments side by side on one device."""
