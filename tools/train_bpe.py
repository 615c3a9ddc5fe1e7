"""`dnapretrain train-bpe` from a clone that is not installed."""

if __name__ == "__main__":
    from _clone import run

    run("train-bpe")
