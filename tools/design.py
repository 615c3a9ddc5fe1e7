"""`dnapretrain design` from a clone that is not installed."""

if __name__ == "__main__":  # checkpoint writers are spawned and import this file again
    from _clone import run

    run("design")
