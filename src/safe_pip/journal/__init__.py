"""One transaction on disk: its journal is written, carried out, undone, finished, and what is left is swept.

`owner` is the file that its process keeps locked, `commit` carries a plan out, `pending` finds journals, `recovery`
rolls a dead process's transaction back or finishes it, and `sweep` deletes what dead processes left.

`parts` are the private directories and marks, `codec` the format of a journal, `directories` the places of its
operations, `undo` the way back and `finish` what is left to do after the commit point.
"""
