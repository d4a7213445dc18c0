"""Prepared wheels (`wheels`): each wheel is unpacked, verified and compiled once (`prepare`), then copied."""
