"""Manage run folders: list, compare and clean them."""
