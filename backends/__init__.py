"""Backends turn a quantized program into an artifact that runs without the compiler."""
