"""Levels: which tensor gets which type, and how its rows are encoded."""
