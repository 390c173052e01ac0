"""Turn a Hugging Face vision-language checkpoint into GGUF, without torch or llama.cpp."""
