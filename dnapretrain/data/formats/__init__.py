"""Files of sequence as they are found, packed or not: text in blocks, clean bases out."""
