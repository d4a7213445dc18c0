"""How a lock is taken, waited for, inherited and reported.

Public modules: `flock` (one kernel lock), `order` (ranks and requests), `state_directory` (the lock files of a tree),
`locker` (all that this process holds), `waiting` (limits and messages of a wait), `inheritance` (what ancestors hold),
`holders` (which process holds what), `entries` (entries of a cache), `fallback` (where there is no flock).
"""
