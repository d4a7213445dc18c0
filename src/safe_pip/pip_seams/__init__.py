"""The only package that knows `pip._internal`.

pip asks it what is installed, and builds, downloads, installs and removes through it. All of that is replaced in
memory, where pip uses it. Public are `seams` (`Seams`, `run_unchanged`) and `seam` (`SeamBroken`).
"""
