"""The delta rule on a CPU, compiled with Numba: sequential over tokens, vectorised over eight rows of a state."""
