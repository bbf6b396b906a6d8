"""One provider dialect, one file, no I/O."""
