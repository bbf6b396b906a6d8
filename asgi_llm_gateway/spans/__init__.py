"""What a call is in OpenTelemetry's words: names, attributes, and the spans of its upstream calls. No ASGI is known here."""
