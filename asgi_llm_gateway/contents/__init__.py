"""What was said in a call, in OpenTelemetry's words: read from every dialect, bounded, for those who asked for it."""
