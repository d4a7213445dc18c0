"""One transaction on disk: its journal is written, carried out, undone, finished, and what is left is swept."""
