"""safe-pip's own verbs, each with the line that `safe-pip help` shows of it."""

VERBS = {"run": "Run any command under the environment's lock."}
