"""Where tenants, keys, money and records are kept: one backend, one file, behind the protocols of ``base``."""
