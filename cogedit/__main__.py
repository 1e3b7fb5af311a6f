"""`python -m cogedit`."""

from cogedit.cli import main

if __name__ == "__main__":
    main()
