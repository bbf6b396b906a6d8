"""Dialects that clients speak, put into chat's words for providers that do not speak them, and the answers put back."""
