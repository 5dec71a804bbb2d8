"""How much memory a plan takes, on one device or on each of several processes, and whether it fits."""
