"""How a guest runs. `base` is the contract; `qemu` and `fake` keep it."""
