"""Kernels as TVM's TIR, compiled by the LLVM inside TVM: the portable form, for hosts without a C compiler."""
