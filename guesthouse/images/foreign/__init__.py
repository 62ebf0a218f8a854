"""Disk images that somebody else made: what they are, whether we take them, and their conversion.

Every byte of them is untrusted. `looking.py` looks at a file and refuses what could make qemu-img
open another one, or what cannot be right; `converting.py` runs qemu-img confined.
"""
