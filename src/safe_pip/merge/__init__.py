"""Staged tree + live tree -> plan. Nothing here changes a disk.

`plan` is the data: operations, plan, journal, removal. `tree` reads what lies in a directory. `merge` decides.
"""
