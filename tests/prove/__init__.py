"""A proof by experiment that no budget is passed and no call is lost: processes, faults, a history, and its checker.

``python -m tests.prove`` runs it. Worker processes take, raise and end holds as fast as they may and write each question
to the ledger and each answer down (``history``, ``worker``); meanwhile processes and servers are killed, frozen and cut off
(``faults``). Afterwards the histories and what the store has are compared (``checker``).
"""
