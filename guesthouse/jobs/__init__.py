"""The machinery of operations: queue, locks, progress, cancel, undo, journal."""
