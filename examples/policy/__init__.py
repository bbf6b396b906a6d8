"""Rules for OPA, and a gateway that asks them."""
