"""DFlash: block diffusion drafter."""
