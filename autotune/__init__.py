"""Choose a kernel and its layouts for every task: a default, a remembered choice, or a measured one."""
