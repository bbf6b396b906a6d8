"""OpenTelemetry's spans, read back: their tree, and their attributes field by field."""
