"""The command line: what an operator types, sees and gets back."""
