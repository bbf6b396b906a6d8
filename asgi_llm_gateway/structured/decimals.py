"""Multiples of decimal numbers. Source: JSON Schema 2020-12, "Validation" (6.2.1)."""

from __future__ import annotations

from fractions import Fraction


def is_multiple(value: float, of: float) -> bool:
    """Whether a number is a multiple of one greater than 0.

    Of a whole number by their exact values; of another by the numbers as they are written, so that 0.3 is one of 0.1.
    """
    if isinstance(of, int) or of.is_integer():
        return (isinstance(value, int) or value.is_integer()) and int(value) % int(of) == 0
    return Fraction(repr(value)) % Fraction(repr(of)) == 0


__all__ = ["is_multiple"]
