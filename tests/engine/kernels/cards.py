"""What cards have of that which kernels must fit."""

KIB = 2**10
SHARED = {"T4": 64 * KIB, "L4": 99 * KIB, "A100": 163 * KIB, "H100": 227 * KIB}  # shared memory of a processor, bytes
