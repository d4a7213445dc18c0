"""safe-pip's own verbs. `VERBS` names them, each with the line that `safe-pip help` shows."""

VERBS = {
    "adopt": "Make the environment's pip be safe-pip, for programs that call pip.",
    "doctor": "Find what is wrong with the environment, and repair it.",
    "merge": "Merge a staged tree (DESTDIR) into a prefix, as one transaction.",
    "run": "Run any command under the environment's lock.",
    "status": "Show which commands hold or wait for the environment's locks.",
    "trace": "Draw what happened when, from the files that `--trace` wrote.",
    "unadopt": "Make the environment's pip be pip again.",
    "unmerge": "Remove what a merge has put, by its manifest.",
    "venv": "Create a virtual environment. Safe to run many times at once.",
}

MODULES = {verb: f"{__name__}.{verb}" for verb in VERBS} | {
    "unadopt": f"{__name__}.adopt",
    "unmerge": f"{__name__}.merge.unmerge",
}
"""The module of each verb, whose `main` runs it."""
