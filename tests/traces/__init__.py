"""Calls as they went: recorded, stored, read."""
