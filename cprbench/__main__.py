"""`python -m cprbench` is `cprbench`."""

from cprbench.cli import main

main()
