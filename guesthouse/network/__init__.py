"""How guests reach the network and are reached."""
