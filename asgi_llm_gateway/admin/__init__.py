"""The operators' side: ``/health`` and ``/api/*``, a Starlette app beside the proxy."""
