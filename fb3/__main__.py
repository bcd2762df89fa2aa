"""`python -m fb3 …`, which is also what `accelerate launch -m fb3 train …` starts."""

from fb3.cli import main

if __name__ == "__main__":
    main()
