"""Is the converted model the one that transformers runs? Found out stage by stage."""
