"""Realtime sessions: frames over an open channel, each of them an ordinary call through the same stack."""
