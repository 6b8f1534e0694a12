"""`python -m flakefs` is the command `flakefs`."""

from flakefs.cli import main

if __name__ == "__main__":
    main()
