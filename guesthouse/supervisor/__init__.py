"""Watches running guests: reattaches after a restart, notices exits, follows readiness."""
