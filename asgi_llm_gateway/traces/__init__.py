"""Calls as they went, kept and read: the protocol, the list in memory, and the queue before the database."""
