"""Virtual machines under QEMU: spec to plan to argv (pure), launching, and the QMP session."""
