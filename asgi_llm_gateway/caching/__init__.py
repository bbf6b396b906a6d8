"""Answers that are kept: what they are known by, whether they may be kept, and how they are told again."""
