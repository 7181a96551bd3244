"""The delta rule on a CPU, compiled with Numba: token by token, eight rows of a state at a time."""
