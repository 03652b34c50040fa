"""`python -m commonweight`, which torchrun and accelerate launch by name."""

from .cli import main

if __name__ == "__main__":
    main()
