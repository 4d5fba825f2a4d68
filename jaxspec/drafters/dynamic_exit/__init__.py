"""Early exit of a model at the depth with the best expected speed (S2D, DEL)."""
