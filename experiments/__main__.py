"""`python -m experiments`: the command `jaxprune`."""

from jaxprune.__main__ import main

if __name__ == "__main__":
    main()
