"""`python -m commonweight`, which torchrun launches by name."""

from .cli import main

if __name__ == "__main__":
    main()
