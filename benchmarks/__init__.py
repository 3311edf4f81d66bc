"""Speed and quality claims, one script a claim; the workloads they share are in `workloads`."""
