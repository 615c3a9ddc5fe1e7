"""Code of models that stock transformers lacks: copied into exported folders, where transformers imports it; not used by us."""
