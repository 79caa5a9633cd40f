"""Manage run folders: list, index, compare, rename, clean and resume them, and collect their best models."""
