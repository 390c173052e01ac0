"""llama.cpp through ctypes: the only package that imports `llama_cpp`.

Nothing here hands out a pointer: values are numpy arrays or Python objects, and what owns native
memory is a context manager.
"""
