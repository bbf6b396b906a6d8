"""The terminal app, for those who have none: routing, and the upstream client."""
