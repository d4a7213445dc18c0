"""Prepared wheels: each wheel is unpacked, verified and compiled once, and copied from then on.

`wheels` is the store and its entries, `prepare` fills it: one process works while the others wait. `unpack`, `verify`
and `compile` are the parts of that work.
"""
