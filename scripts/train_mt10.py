"""Train one agent on Meta-World's MT10, or whatever --benchmark names."""

from scripts.training import main

if __name__ == "__main__":
    main("MT10")
