"""Libraries of others, put here by the `vendoring` tool from `vendor.txt` (docs/vendoring.md); never edited by hand."""
