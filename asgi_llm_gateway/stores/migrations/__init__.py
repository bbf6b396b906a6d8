"""How the tables came to be: Alembic revisions, configured in code (see ``migrate``), without an alembic.ini."""
