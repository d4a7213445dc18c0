"""Staged tree + live tree -> plan. Nothing here changes a disk."""
