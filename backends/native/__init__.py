"""Kernels generated for one operation, shape, format and processor: C with intrinsics, compiled when first used."""
