"""Zero-shot effects of variants."""
