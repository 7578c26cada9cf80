"""`python -m resnetlab.cli` is `resnetlab`."""

from resnetlab.cli import main

main()
