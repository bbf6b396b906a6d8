"""The command line's verbs over the shared store. ``__main__`` puts them together and has ``serve`` and ``check``."""
