"""safe-pip's own verbs, each with the line that `safe-pip help` shows of it."""

VERBS = {
    "doctor": "Find what is wrong with the environment, and repair it.",
    "run": "Run any command under the environment's lock.",
    "status": "Show who holds or waits for the environment's locks.",
    "venv": "Make a virtual environment, once, however many ask for it.",
}
