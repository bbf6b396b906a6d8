"""Answers that match their schema: schemas checked before anything is spent, answers read, validated, repaired."""
