"""Next-scale transformer (VAR)."""
