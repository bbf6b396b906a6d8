"""Metrics: counted in process, bounded in number, read by Prometheus from any worker."""
