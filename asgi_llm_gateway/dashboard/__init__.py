"""The dashboard: pages for operators and tenants, in front of the admin API's own operations."""
