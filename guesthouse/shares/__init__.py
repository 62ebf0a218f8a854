"""Folders of the host inside guests: which way, the file server, mounting and letting go.

`server/` is a program of its own that runs with the standard library alone, one process a share.
docs/design/shares.md says why it is as it is.
"""
