"""Pools, volumes and qemu-img."""
