"""Next-scale generation."""
