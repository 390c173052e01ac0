"""The parts of a vocabulary: files read, tokens added, and the kinds that llama.cpp tokenizes."""
