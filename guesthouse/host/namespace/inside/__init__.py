"""The small programs that make, hold and enter the house's namespaces: standard library alone.

They run as processes of their own, `python3 -I -S …/inside/__main__.py start|porter`, because
entering a namespace needs a process with one thread, and because the holder outlives the daemon.
"""
