"""A playground page over the realtime lane."""
