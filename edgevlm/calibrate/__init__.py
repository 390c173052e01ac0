"""An importance matrix that has seen images."""
