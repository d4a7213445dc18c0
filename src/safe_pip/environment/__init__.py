"""One environment: which locks each access to it takes, and one command's change of it.

Public are `environment` (`Environment`), `access` (`Target`, `Prefix`), `transaction` (`Transaction`), `change`
(`Change`, `Terms`) and `snapshot` (`Snapshot`, `Ownership`, `hides`).
"""
