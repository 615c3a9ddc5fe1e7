"""What a run did, from its log: curve, page, comparison."""
