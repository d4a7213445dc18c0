"""How a lock is taken, waited for, inherited and reported. `locker` is all that this process holds."""
