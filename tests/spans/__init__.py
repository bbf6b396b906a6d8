"""Tests of what a call is in OpenTelemetry's words."""
