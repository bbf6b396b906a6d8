"""Tests of realtime sessions."""
