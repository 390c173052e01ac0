"""MODEL -> files that can be loaded: resolve, convert, quantize, keep."""
