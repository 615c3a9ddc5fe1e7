"""What is in sequence files and shards, for people: `lint` before preprocessing, `inspect` behind it."""
