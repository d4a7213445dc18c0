"""safe-pip's own verbs, each with the line that `safe-pip help` shows of it."""

VERBS = {
    "adopt": "Have the environment's own pip be safe-pip, for programs that call pip.",
    "doctor": "Find what is wrong with the environment, and repair it.",
    "merge": "Merge a staged tree (DESTDIR) into a prefix, as one transaction.",
    "run": "Run any command under the environment's lock.",
    "status": "Show who holds or waits for the environment's locks.",
    "unadopt": "Have the environment's own pip be pip again.",
    "unmerge": "Take away again what a merge has put, by its manifest.",
    "venv": "Make a virtual environment, once, however many ask for it.",
}
