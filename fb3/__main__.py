"""Runs `python -m fb3 …`, which `accelerate launch -m fb3 train …` starts too."""

from fb3.cli import main

if __name__ == "__main__":
    main()
