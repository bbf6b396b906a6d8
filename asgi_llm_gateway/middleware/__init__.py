"""One concern, one file, one class."""
